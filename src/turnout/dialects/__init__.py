"""Codecs between bytes and values: what clients speak. Pure."""
