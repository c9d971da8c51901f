"""Turnout: the router in front of language-model fleets."""

__version__ = "0.1.0"
