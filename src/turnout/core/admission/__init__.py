"""May this request enter at all."""
