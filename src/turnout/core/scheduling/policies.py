"""Preferences: which candidate wins (scheduling §5.1). A policy reads a decision's columns and returns a position.

It may fill in `totals`, `tie`, `fallback` and `draws`. It touches nothing else but the rotation and the rng it is
given, so that a decision can be computed again from its printed columns. Candidates are sorted by name: the first of
several positions is the first name.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Final

from xxhash import xxh3_64_intdigest

from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.kit.rng import Rng
from turnout.core.kit.rotation import Rotation
from turnout.core.scheduling import baselines, turnout
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision
from turnout.core.scheduling.ties import among, nearest

Policy = Callable[[Decision, Rotation, Rng], int]
Gatherer = Callable[[Decision, Ask, Pool, Fleet], None]

_CLOSE: Final = 2e-6  # further apart than this two totals cannot round to the same
_BOUND: Final = 1.25  # consistent_hash: a candidate takes at most this multiple of the mean load
_LONG_TOKENS: Final = 2048


def affinity_load(decision: Decision, rotation: Rotation, rng: Rng) -> int:
    """Highest matched share less relative load; ties busy, then name.

    When nobody holds the first block the totals only order by load, and as with the other prefix policies equals
    take turns: toward the first name, every miss of an idle fleet would land on one endpoint.
    """
    if decision.prefix_result != "match":
        return _least_busy_in_turn(decision, rotation)
    if decision.rows:
        return affinity_variant(decision, rotation, rng)
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
    near = nearest(totals, best)
    if len(near) > 1:
        decision.tie = "busy,name"
    return min(near, key=busy.__getitem__)


def affinity_variant(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """`affinity_load` with another form or match; rows are (share, capacity)."""
    busy = decision.busy
    if decision.form == "free_capacity":
        alpha = decision.beta
        decision.totals = totals = [
            alpha * share + (1.0 - alpha) * max(0.0, capacity - load) / capacity
            for (share, capacity), load in zip(decision.rows, busy, strict=True)
        ]
        near = nearest(totals, max(totals))
        if len(near) > 1:
            decision.tie = "recency,name"
            recency = decision.recency or [0] * len(totals)
            return min(near, key=lambda position: -recency[position])
        return near[0]
    mean = sum(busy) / len(busy)
    weight = decision.beta / max(1.0, mean)
    decision.totals = totals = [row[0] - (load - mean) * weight for row, load in zip(decision.rows, busy, strict=True)]
    near = nearest(totals, max(totals))
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
    return near[0] if len(near) == 1 else among(decision, near, rotation)


def first_block(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """Least busy of those that hold the first block; nobody does: least busy, in turn."""
    if decision.prefix_result != "match":
        return _least_busy_in_turn(decision, rotation)
    busy = decision.busy
    owners = [position for position, depth in enumerate(decision.depths) if depth]
    least = min([busy[position] for position in owners])
    near = [position for position in owners if busy[position] == least]
    return near[0] if len(near) == 1 else among(decision, near, rotation)


def consistent_hash(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """Rendezvous order of the session's or the prefix's key; the first whose load stays within 1.25 of the mean."""
    busy = decision.busy
    if not decision.rows:
        return _least_busy_in_turn(decision, rotation)
    ranks = [row[0] for row in decision.rows]
    decision.totals = ranks
    bound = math.ceil(_BOUND * (sum(busy) + 1) / len(busy))
    order = sorted(range(len(busy)), key=lambda position: -ranks[position])
    return next((position for position in order if busy[position] + 1 <= bound), order[0])


def memory_aware(decision: Decision, rotation: Rotation, rng: Rng) -> int:
    """Most free KV memory; ties busy, then name. Nobody's usage is known: least busy."""
    if not decision.rows:
        decision.fallback = "no_signal"
        return least_busy(decision, rotation, rng)
    decision.totals = totals = [(1.0 - usage) * capacity for usage, capacity in decision.rows]
    near = nearest(totals, max(totals))
    if len(near) > 1:
        decision.tie = "busy,name"
    return min(near, key=decision.busy.__getitem__)


def prompt_length_aware(decision: Decision, rotation: Rotation, rng: Rng) -> int:
    """Long prompts go where memory is free, short ones to the least busy."""
    if decision.tokens >= _LONG_TOKENS:
        return memory_aware(decision, rotation, rng)
    return least_busy(decision, rotation, rng)


# -- what some of them read beyond depth and load ---------------------------------------------------------------------


def hash_rows(decision: Decision, ask: Ask, pool: Pool, fleet: Fleet) -> None:  # noqa: ARG001
    """Rank of each candidate under the key that keeps a conversation together."""
    key = ask.affinity
    if key:
        decision.rows = [(xxh3_64_intdigest(name.encode(), key),) for name in decision.names]


def memory_rows(decision: Decision, ask: Ask, pool: Pool, fleet: Fleet) -> None:  # noqa: ARG001
    """KV usage and capacity; an unknown capacity is the mean of the known."""
    usage = baselines.kv_usage(decision)
    if usage is None:
        return
    sizes = [member.kv_capacity_tokens for member in decision.members]
    known = [size for size in sizes if size is not None]
    mean = sum(known) / len(known) if known else 1.0
    decision.rows = [(used, mean if size is None else size) for used, size in zip(usage, sizes, strict=True)]


def affinity_rows(decision: Decision, ask: Ask, pool: Pool, fleet: Fleet) -> None:  # noqa: ARG001
    """Share and capacity for the forms that are not the default; nothing for the default."""
    scheduling = fleet.scheduling
    form, match = scheduling.affinity_form, scheduling.affinity_match
    if (form == "mean_relative" and match == "contiguous") or decision.prefix_result != "match":
        return
    decision.form = form
    if form == "free_capacity":
        decision.beta = scheduling.affinity_weight
    blocks = decision.blocks
    if match == "first_block":
        shares = [1.0 if depth else 0.0 for depth in decision.depths]
    elif match == "deepest_row":
        row, owners = fleet.index.deepest(ask.keys)
        shares = [(row + 1) / blocks if member.bit & owners else 0.0 for member in decision.members]
    else:
        shares = [depth / blocks for depth in decision.depths]
    decision.rows = [(share, member.max_in_flight) for share, member in zip(shares, decision.members, strict=True)]


def turnout_rows(decision: Decision, ask: Ask, pool: Pool, fleet: Fleet) -> None:  # noqa: ARG001
    """What the cost in seconds is made of."""
    turnout.rows(decision, ask, fleet)


POLICIES: Final[dict[str, Policy]] = {
    "turnout": turnout.pick,
    "affinity_load": affinity_load,
    "least_busy": least_busy,
    "round_robin": round_robin,
    "random": random,
    "power_of_two": power_of_two,
    "longest_prefix": longest_prefix,
    "first_block": first_block,
    "consistent_hash": consistent_hash,
    "memory_aware": memory_aware,
    "prompt_length_aware": prompt_length_aware,
    "sglang_cache_aware": baselines.sglang_cache_aware,
    "dynamo_cost": baselines.dynamo_cost,
    "llm_d_default": baselines.llm_d_default,
    "aibrix_prefix": baselines.aibrix_prefix,
    "least_predicted_ttft": turnout.pick_predicted_ttft,
}

GATHERERS: Final[dict[str, Gatherer]] = {
    "turnout": turnout_rows,
    "affinity_load": affinity_rows,
    "consistent_hash": hash_rows,
    "memory_aware": memory_rows,
    "prompt_length_aware": memory_rows,
    "sglang_cache_aware": baselines.sglang_rows,
    "dynamo_cost": baselines.dynamo_rows,
    "llm_d_default": baselines.llm_d_rows,
    "aibrix_prefix": baselines.aibrix_rows,
    "least_predicted_ttft": turnout_rows,
}

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    **baselines.COLUMNS,
    "turnout": turnout.COLUMNS,
    "least_predicted_ttft": turnout.COLUMNS,
    "affinity_load": ("share", "capacity"),
    "consistent_hash": ("rank",),
    "memory_aware": ("kv_usage", "capacity"),
    "prompt_length_aware": ("kv_usage", "capacity"),
}

NEED_RECENCY: Final = frozenset(("turnout", "least_predicted_ttft", "longest_prefix", "first_block"))


def _least_busy_in_turn(decision: Decision, rotation: Rotation) -> int:
    decision.fallback = "no_match"
    busy = decision.busy
    lowest = min(busy)
    if busy.count(lowest) == 1:
        return busy.index(lowest)
    decision.tie = "rotation"
    near = [position for position, load in enumerate(busy) if load == lowest]
    return near[rotation.turn(len(near))]
