"""Numbers only: what runs have taught, what to run next, and how two recipes compare."""
