"""Where prompts meet KV caches: rendering, block keys, and the index of who holds what."""
