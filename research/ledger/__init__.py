"""What happened: events, the session's folder, the state they fold to, and the rules they keep."""
