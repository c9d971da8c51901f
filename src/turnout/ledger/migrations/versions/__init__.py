"""Revisions, oldest first by file name."""
