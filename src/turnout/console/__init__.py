"""The admin listener: a cold path on its own socket, so a framework may serve it."""
