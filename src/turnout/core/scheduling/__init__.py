"""Which endpoint serves this attempt: filter, cost, pick, explain."""
