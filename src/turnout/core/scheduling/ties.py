"""Who wins among equals: recency of affinity, then load, then turns (scheduling §5); the first name would pile up."""

from __future__ import annotations

from turnout.core.kit.rotation import Rotation
from turnout.core.scheduling.types import Decision

_DIGITS = 6  # two costs are equal when equal after rounding to 1e-6
_CLOSE = 2e-6  # further apart than this they cannot round to the same


def nearest(totals: list[float], best: float) -> list[int]:
    """Positions of all totals that equal the best one after rounding."""
    near = [position for position, total in enumerate(totals) if -_CLOSE <= total - best <= _CLOSE]
    if len(near) > 1:
        rounded = round(best, _DIGITS)
        near = [position for position in near if round(totals[position], _DIGITS) == rounded]
    return near


def lowest(decision: Decision, totals: list[float], rotation: Rotation) -> int:
    """Position of the lowest total; ties broken by all three rules."""
    near = nearest(totals, min(totals))
    return near[0] if len(near) == 1 else among(decision, near, rotation)


def tied(totals: list[float]) -> bool:
    """Tell whether the lowest total may have an equal."""
    best = min(totals)
    return totals.count(best) > 1 or len(nearest(totals, best)) > 1


def among(decision: Decision, near: list[int], rotation: Rotation) -> int:
    """Break a tie between these positions."""
    for rule, column in (("recency", [-value for value in decision.recency]), ("busy", decision.busy)):
        if not column:
            continue
        least = min([column[position] for position in near])
        near = [position for position in near if column[position] == least]
        if len(near) == 1:
            decision.tie = rule
            return near[0]
    decision.tie = "rotation"
    return near[rotation.turn(len(near))]
