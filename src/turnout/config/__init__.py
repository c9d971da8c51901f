"""One typed file plus the environment become one frozen `Config`; every problem is named with its place."""

from __future__ import annotations

from turnout.config.errors import ConfigError, Problem
from turnout.config.load import Loaded, load
from turnout.config.schema import Config

__all__ = ["Config", "ConfigError", "Loaded", "Problem", "load"]
