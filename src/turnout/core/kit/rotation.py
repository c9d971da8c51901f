"""A counter that hands out turns: equal choices take turns in a fixed order instead of all going to the first."""

from __future__ import annotations


class Rotation:
    """`turn(size)` = counter mod size, then the counter moves on by one."""

    __slots__ = ("counter",)

    def __init__(self, seed: int = 0) -> None:
        self.counter = seed

    def turn(self, size: int) -> int:
        """Return the index of whoever's turn it is among `size` equals (size ≥ 1)."""
        counter = self.counter
        # 63 bits are never used up by counting, yet a seed may start anywhere.
        self.counter = (counter + 1) & 0x7FFFFFFFFFFFFFFF
        return counter % size
