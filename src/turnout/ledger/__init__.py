"""What happened: the append-only record of calls and attempts, written off the request path."""
