"""Unit vectors of one bucket as float32 matrices: a look-up reads a quarter of them and rules most rows out by that.

A look-up is bound by memory, not by arithmetic. The similarity that the remaining dimensions can still add is at most
the product of the two remainders' norms (Cauchy–Schwarz), so only rows that could reach the threshold are read whole.
"""

from __future__ import annotations

import math
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Vector = npt.NDArray[np.float32]
_GROWTH = 1.25
_SHRINK_PART = 2  # rows are given back when less than half of them is in use
_LEAD_PART = 4
_WHOLE_PART = 4  # when more than a quarter of the rows is left, one product over all of them is cheaper
_ROUNDING = 1e-4  # what float32 may lose; too much of it costs a row read whole, too little a match


class Frozen(Generic[T]):
    """The rows of a bucket as they were: another thread may read them while the bucket goes on.

    Owners are a copy; numbers are not, and a row that is moved meanwhile may give a wrong similarity: ask
    `Vectors.similarity` again before anything rests on one.
    """

    __slots__ = ("_cut", "_lead", "_norms", "_owners", "_rest")

    def __init__(self, lead: Vector, rest: Vector, norms: Vector, owners: list[T]) -> None:
        self._lead, self._rest, self._norms, self._owners = lead, rest, norms, owners
        self._cut = lead.shape[1]

    @property
    def floats(self) -> int:
        """Numbers in all rows."""
        return self._lead.size + self._rest.size

    def at_least(self, vector: Vector, threshold: float) -> list[tuple[float, T]]:
        """Return (similarity, owner) of every row that is at least this similar, in no order."""
        count = len(self._owners)
        if not count:
            return []
        rest = vector[self._cut :]
        similarity = self._lead @ vector[: self._cut]
        most = similarity + self._norms * np.float32(math.sqrt(float(rest @ rest)))
        rows = np.flatnonzero(most >= np.float32(threshold - _ROUNDING))
        if len(rows) > count // _WHOLE_PART:
            similarity = similarity + self._rest @ rest
            rows = np.flatnonzero(similarity >= np.float32(threshold))
            found = similarity[rows]
        else:
            found = similarity[rows] + self._rest[rows] @ rest
            kept = found >= np.float32(threshold)
            rows, found = rows[kept], found[kept]
        return [(value, self._owners[row]) for value, row in zip(found.tolist(), rows.tolist(), strict=True)]


class Vectors(Generic[T]):
    """Rows with their owners. Removing moves the last row into the gap, so rows are dense at all times."""

    __slots__ = ("_cut", "_lead", "_norms", "_owners", "_rest")

    def __init__(self, dim: int) -> None:
        self._cut = max(1, dim // _LEAD_PART)
        self._lead = np.empty((1, self._cut), dtype=np.float32)
        self._rest = np.empty((1, dim - self._cut), dtype=np.float32)
        self._norms = np.empty(1, dtype=np.float32)
        """Norms of the rows of `_rest`."""
        self._owners: list[T] = []

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, vector: Vector, owner: T) -> int:
        """Copy a vector in and return its row."""
        row = len(self._owners)
        if row == len(self._norms):
            self._resize(int(row * _GROWTH) + 1)
        rest = vector[self._cut :]
        self._lead[row], self._rest[row], self._norms[row] = vector[: self._cut], rest, math.sqrt(float(rest @ rest))
        self._owners.append(owner)
        return row

    def remove(self, row: int) -> T | None:
        """Remove a row; returns the owner that lies in it now, None when the last row was removed."""
        last = self._owners.pop()
        at = len(self._owners)
        if row != at:
            self._lead[row], self._rest[row], self._norms[row] = self._lead[at], self._rest[at], self._norms[at]
            self._owners[row] = last
        if at * _SHRINK_PART < len(self._norms) - 1:
            self._resize(int(at * _GROWTH) + 1)
        return last if row != at else None

    @property
    def nbytes(self) -> int:
        """Bytes that the matrices take, rows without an owner included."""
        return self._lead.nbytes + self._rest.nbytes + self._norms.nbytes + 8 * len(self._norms)

    def _resize(self, rows: int) -> None:
        count = min(rows, len(self._norms))
        for name in ("_lead", "_rest", "_norms"):
            old = getattr(self, name)
            new = np.empty((rows, *old.shape[1:]), dtype=np.float32)
            new[:count] = old[:count]
            setattr(self, name, new)

    def at_least(self, vector: Vector, threshold: float) -> list[tuple[float, T]]:
        """Return (similarity, owner) of every row that is at least this similar, in no order."""
        return self.frozen().at_least(vector, threshold)

    def frozen(self) -> Frozen[T]:
        """Return the rows as they are now."""
        count = len(self._owners)
        return Frozen(self._lead[:count], self._rest[:count], self._norms[:count], self._owners.copy())

    def similarity(self, row: int, vector: Vector) -> float:
        """Return the similarity of one row."""
        return float(self._lead[row] @ vector[: self._cut] + self._rest[row] @ vector[self._cut :])
