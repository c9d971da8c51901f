"""Turnout: the router in front of language-model fleets."""

from turnout import compiled as compiled

__version__ = "0.1.0"
