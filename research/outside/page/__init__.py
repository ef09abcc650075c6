"""The page of a session, or of a folder of them: what it is doing now and why, and what a person may say to it."""
