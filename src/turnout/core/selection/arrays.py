"""The array types of selection and the one way to make them: float64, contiguous, never written again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.intp]


def frozen(values: Sequence[float] | Sequence[Sequence[float]] | npt.NDArray[np.generic]) -> Floats:
    """Return the values as an own float64 array that refuses to be written: snapshots are shared by all requests."""
    array = np.array(values, dtype=np.float64, order="C")
    array.setflags(write=False)
    return array
