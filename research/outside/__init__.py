"""Who looks in: people, coding agents and language models, through one inbox."""
