"""Bundles on disk: reading with every check before the first request, several versions at once, hot reload, writing."""
