"""The GPT: a parameter table, one file per kind of mechanism, and the pure functions of `gpt.py`."""
