"""Trace replay: the live scheduling core on virtual time, against a model of each engine."""
