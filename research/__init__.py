"""The autonomous researcher: it proposes, checks, runs, learns, proves and reports."""
