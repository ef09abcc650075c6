"""A language model as a lane: prompt, provider, answer."""
