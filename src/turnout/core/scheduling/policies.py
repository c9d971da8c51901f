"""Preferences: which candidate wins (scheduling §5.1). A policy reads a decision's columns and returns a position.

It may fill in `totals`, `tie`, `fallback` and `draws`. It touches nothing else but the rotation and the rng it is
given, so that a decision can be computed again from its printed columns. Candidates are sorted by name: the first of
several positions is the first name.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

from turnout.core.kit.rng import Rng
from turnout.core.kit.rotation import Rotation
from turnout.core.scheduling.types import Decision

Policy = Callable[[Decision, Rotation, Rng], int]

_DIGITS = 6  # two costs are equal when equal after rounding to 1e-6
_CLOSE = 2e-6  # further apart than this they cannot round to the same


def affinity_load(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """Highest matched share less relative load; ties busy, then name.

    When nobody holds the first block the totals only order by load, and as with the other prefix policies equals
    take turns: toward the first name, every miss of an idle fleet would land on one endpoint.
    """
    if decision.prefix_result != "match":
        return _least_busy_in_turn(decision, rotation)
    depths = decision.depths
    busy = decision.busy
    deepest = max(depths)
    position = depths.index(deepest)
    if busy[position] == min(busy) and depths.count(deepest) == 1:
        # Nobody matches as deep and nobody is less busy: no weights can change that, and totals can wait for explain.
        return position
    totals = decision.totals = affinity_totals(depths, busy, decision.blocks, decision.beta)
    best = max(totals)
    position = totals.index(best)
    totals[position] = best - 1.0  # out of the way while the runner-up is looked for
    runner_up = max(totals)
    totals[position] = best
    if best - runner_up > _CLOSE:
        return position
    near = [place for place, total in enumerate(totals) if best - total <= _CLOSE]
    if totals.count(best) < len(near):
        # Only here does rounding decide; it costs more than the whole comparison.
        best = round(best, _DIGITS)
        near = [place for place in near if round(totals[place], _DIGITS) == best]
    if len(near) > 1:
        decision.tie = "busy,name"
    return min(near, key=busy.__getitem__)


def affinity_totals(depths: list[int], busy: list[float], blocks: int, beta: float) -> list[float]:
    """`f_e − β · (busy_e − mean) / max(1, mean)`, `f_e = depth_e / blocks`; computed as one weight per pool."""
    mean = sum(busy) / len(busy)
    weight = beta / max(1.0, mean)
    per_block = 1.0 / (blocks or 1)
    # zip without strict: the columns are parallel by construction, and the check costs a tenth of this hot loop.
    return [depth * per_block - (load - mean) * weight for depth, load in zip(depths, busy)]  # noqa: B905


def least_busy(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """Lowest `busy`; ties by name."""
    busy = decision.busy
    lowest = min(busy)
    if busy.count(lowest) > 1:
        decision.tie = "name"
    return busy.index(lowest)


def round_robin(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """Take the first name after the previously picked one, cyclic."""
    following = bisect.bisect_right(decision.names, decision.last)
    return following if following < len(decision.names) else 0


def random(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """Uniform from `rng`."""
    position = rng.randrange(len(decision.names))
    decision.draws = [position]
    return position


def power_of_two(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """Take the less busy of two distinct candidates from `rng`; a tie goes to the first name."""
    size = len(decision.names)
    if size == 1:
        return 0
    one = rng.randrange(size)
    two = rng.randrange(size - 1)
    decision.draws = [one, two]
    # Drawing from one fewer and stepping over the first keeps the pair distinct and uniform.
    if two >= one:
        two += 1
    first, second = (one, two) if one < two else (two, one)
    busy = decision.busy
    if busy[first] == busy[second]:
        decision.tie = "name"
    return second if busy[second] < busy[first] else first


def longest_prefix(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """Deepest match; ties by recency of affinity, `busy`, rotation. Nobody holds anything: least busy, in turn."""
    if decision.prefix_result != "match":
        return _least_busy_in_turn(decision, rotation)
    depths = decision.depths
    deepest = max(depths)
    near = [position for position, depth in enumerate(depths) if depth == deepest]
    if len(near) == 1:
        return near[0]
    for rule, column in (("recency", [-value for value in decision.recency]), ("busy", decision.busy)):
        lowest = min(column[position] for position in near)
        near = [position for position in near if column[position] == lowest]
        decision.tie = rule
        if len(near) == 1:
            return near[0]
    decision.tie = "rotation"
    return near[rotation.turn(len(near))]


POLICIES: dict[str, Policy] = {
    "affinity_load": affinity_load,
    "least_busy": least_busy,
    "round_robin": round_robin,
    "random": random,
    "power_of_two": power_of_two,
    "longest_prefix": longest_prefix,
}


def _least_busy_in_turn(decision: Decision, rotation: Rotation) -> int:
    decision.fallback = "no_match"
    busy = decision.busy
    lowest = min(busy)
    if busy.count(lowest) == 1:
        return busy.index(lowest)
    decision.tie = "rotation"
    near = [position for position, load in enumerate(busy) if load == lowest]
    return near[rotation.turn(len(near))]
