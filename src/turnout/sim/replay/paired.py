"""Is the difference real? Runs of equal seeds are compared request by request, with bootstrap intervals.

Requests of one moment share their fate, so whole stretches of the trace are drawn, not single requests.
"""

from __future__ import annotations

import random
from typing import Any

_DRAWS = 1000
_STRETCH = 50
_LOW, _HIGH = 0.025, 0.975


def paired_difference(mine: list[float], theirs: list[float], seed: int) -> dict[str, Any]:
    """Mean of `mine − theirs` over pairs, and the interval that holds 95 % of the resampled means."""
    if len(mine) != len(theirs):
        raise ValueError(f"{len(mine)} values against {len(theirs)}: expected pairs")
    if not mine:
        return {"mean": None, "low": None, "high": None, "pairs": 0}
    gaps = [one - other for one, other in zip(mine, theirs, strict=True)]
    stretches = [gaps[start : start + _STRETCH] for start in range(0, len(gaps), _STRETCH)]
    sums = [(sum(stretch), len(stretch)) for stretch in stretches]
    rng = random.Random(seed)
    means: list[float] = []
    for _ in range(_DRAWS):
        drawn = rng.choices(sums, k=len(sums))
        means.append(sum(total for total, _ in drawn) / sum(count for _, count in drawn))
    means.sort()
    return {
        "mean": round(sum(gaps) / len(gaps), 6),
        "low": round(means[int(_LOW * _DRAWS)], 6),
        "high": round(means[int(_HIGH * _DRAWS) - 1], 6),
        "pairs": len(gaps),
    }
