"""Chance is an argument: the two draws that the core ever makes. `random.Random(seed)` satisfies it."""

from __future__ import annotations

from typing import Protocol


class Rng(Protocol):
    """A seeded source of chance, owned by the caller."""

    def random(self) -> float:
        """Return a float in [0, 1)."""
        ...

    def randrange(self, stop: int, /) -> int:
        """Return an int in [0, stop)."""
        ...
