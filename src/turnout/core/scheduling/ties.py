"""Who wins among equals: recency of affinity, then load, then turns (scheduling §5); the first name would pile up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from turnout.core.kit.rotation import Rotation
from turnout.core.scheduling.decision import Decision

_DIGITS: Final = 6  # two costs are equal when equal after rounding to 1e-6
_CLOSE: Final = 2e-6  # further apart than this they cannot round to the same


def nearest(totals: Sequence[float], best: float) -> list[int]:
    """Positions of all totals that equal the best one after rounding."""
    near = [position for position, total in enumerate(totals) if -_CLOSE <= total - best <= _CLOSE]
    if len(near) > 1 and totals.count(best) < len(near):
        # Only here does rounding decide; it costs more than the whole comparison.
        rounded = round(best, _DIGITS)
        near = [position for position in near if round(totals[position], _DIGITS) == rounded]
    return near


def lowest(decision: Decision, totals: Sequence[float], rotation: Rotation) -> int:
    """Position of the lowest total; ties broken by all three rules."""
    near = nearest(totals, min(totals))
    return near[0] if len(near) == 1 else among(decision, near, rotation)


def clear_winner(totals: Sequence[float]) -> int:
    """Position of the lowest total when no other can equal it, the usual case; else -1."""
    order = sorted(totals)
    return totals.index(order[0]) if len(order) == 1 or order[1] - order[0] > _CLOSE else -1


def among(decision: Decision, near: list[int], rotation: Rotation) -> int:
    """Break a tie between these positions."""
    recency = decision.recency
    if recency:
        most = max([recency[position] for position in near])
        if most:
            near = [position for position in near if recency[position] == most]
            decision.tie = "recency"
            if len(near) == 1:
                return near[0]
    busy = decision.busy
    least = min([busy[position] for position in near])
    near = [position for position in near if busy[position] == least]
    if len(near) == 1:
        decision.tie = "busy"
        return near[0]
    decision.tie = "rotation"
    return near[rotation.turn(len(near))]
