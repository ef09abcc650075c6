"""What a session amounts to: facts, plots, report, terminal view."""
