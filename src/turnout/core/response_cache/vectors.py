"""Unit vectors of one bucket in one float32 matrix, so that a look-up is a single matrix product."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Vector = npt.NDArray[np.float32]
_FIRST_ROWS = 8


class Vectors(Generic[T]):
    """Rows with their owners. Removing moves the last row into the gap, so rows are dense at all times."""

    __slots__ = ("_matrix", "_owners")

    def __init__(self, dim: int) -> None:
        self._matrix = np.empty((_FIRST_ROWS, dim), dtype=np.float32)
        self._owners: list[T] = []

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, vector: Vector, owner: T) -> int:
        """Copy a vector in and return its row."""
        row = len(self._owners)
        if row == len(self._matrix):
            grown = np.empty((2 * row, self._matrix.shape[1]), dtype=np.float32)
            grown[:row] = self._matrix
            self._matrix = grown
        self._matrix[row] = vector
        self._owners.append(owner)
        return row

    def remove(self, row: int) -> T | None:
        """Remove a row; returns the owner that lies in it now, None when the last row was removed."""
        last = self._owners.pop()
        if row == len(self._owners):
            return None
        self._matrix[row] = self._matrix[len(self._owners)]
        self._owners[row] = last
        return last

    def at_least(self, vector: Vector, threshold: float) -> list[tuple[float, T]]:
        """Return (similarity, owner) of every row that is at least this similar, in no order."""
        if not self._owners:
            return []
        similarity = self._matrix[: len(self._owners)] @ vector
        rows = np.flatnonzero(similarity >= np.float32(threshold))
        return [(float(similarity[row]), self._owners[row]) for row in rows.tolist()]
