"""The pure core: decisions without clock, entropy, I/O, async or logging."""
