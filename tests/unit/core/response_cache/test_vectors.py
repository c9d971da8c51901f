"""Look-ups by vector against the plain product, whatever the part that is read first says."""

from __future__ import annotations

import numpy as np
import pytest

from turnout.core.response_cache.vectors import Vectors


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 256])
@pytest.mark.parametrize("spread", [0.0, 0.05, 0.3, 3.0])
def test_the_same_rows_as_a_whole_product(dim: int, spread: float) -> None:
    rng = np.random.default_rng(dim)
    centre = rng.normal(size=dim)
    rows = (centre + spread * rng.normal(size=(200, dim))).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vectors: Vectors[int] = Vectors(dim)
    for number, row in enumerate(rows):
        assert vectors.add(row, number) == number
    for threshold in (-1.0, 0.0, 0.5, 0.9, 0.99):
        asked = rows[7]
        exact = rows.astype(np.float64) @ asked.astype(np.float64)
        found = {owner: value for value, owner in vectors.at_least(asked, threshold)}
        surely = set(np.flatnonzero(exact >= threshold + 1e-5).tolist())
        perhaps = set(np.flatnonzero(exact >= threshold - 1e-5).tolist())
        assert surely <= set(found) <= perhaps
        assert all(abs(value - exact[owner]) < 1e-5 for owner, value in found.items())


def test_rows_stay_dense_when_some_are_removed() -> None:
    vectors: Vectors[str] = Vectors(4)
    rows = np.eye(4, dtype=np.float32)
    for name, row in zip("abcd", rows, strict=True):
        vectors.add(row, name)
    assert vectors.remove(1) == "d"
    assert vectors.remove(2) is None
    assert len(vectors) == 2
    assert [owner for _, owner in vectors.at_least(rows[3], 0.9)] == ["d"]
    assert vectors.at_least(rows[1], 0.9) == []
    assert vectors.remove(0) == "d"
    assert vectors.remove(0) is None
    assert vectors.at_least(rows[0], -1.0) == []
