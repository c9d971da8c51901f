"""What other routers do, as named rules under the same pipeline (scheduling §5.1): the replay compares with these.

Each rule has a gatherer that writes `rows` and a pick that reads only them and the decision's columns, so that a
decision can be computed again. Sources: SGLang router `cache_aware`, Dynamo's KV router, llm-d's default scorers,
AIBrix `prefix-cache`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from turnout.core.fleet.active_blocks import ActiveBlocks
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.kit.rng import Rng
from turnout.core.kit.rotation import Rotation
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision

COLUMNS = {
    "sglang_cache_aware": ("served", "owned_blocks"),
    "dynamo_cost": ("pending_blocks", "decode_blocks"),
    "llm_d_default": ("waiting", "kv_usage"),
    "aibrix_prefix": ("running",),
}

_SGLANG_ABSOLUTE, _SGLANG_RELATIVE, _SGLANG_SHARE = 64, 1.5, 0.3
_AIBRIX_IMBALANCE, _AIBRIX_SIGMAS = 8, 1.0
_LLM_D_PREFIX, _LLM_D_QUEUE, _LLM_D_KV = 3.0, 2.0, 2.0


# -- what they read ---------------------------------------------------------------------------------------------------


def sglang_rows(decision: Decision, ask: Ask, pool: Pool, fleet: Fleet) -> None:  # noqa: ARG001
    """Walk the chain while each block has an owner; the owner of the last one is the match."""
    owners = pool.owners()
    depth = 0
    owner = 0
    for key in ask.keys:
        held = owners.peek(key)
        if held is None:
            break
        owner = held
        depth += 1
    decision.rows = [
        (member.attempts_total, depth if owner and member.bit == owner else 0) for member in decision.members
    ]


def dynamo_rows(decision: Decision, ask: Ask, pool: Pool, fleet: Fleet) -> None:  # noqa: ARG001
    """Blocks to prefill that are queued, and distinct blocks of active sequences; counted from the first call on."""
    out: list[tuple[float, ...]] = []
    for member in decision.members:
        if member.active_blocks is None:
            member.active_blocks = ActiveBlocks()
        out.append((member.pending_prefill_tokens / ask.block_tokens, member.active_blocks.distinct))
    decision.rows = out


def llm_d_rows(decision: Decision, ask: Ask, pool: Pool, fleet: Fleet) -> None:  # noqa: ARG001
    """Requests waiting and KV usage as reported; unknown is the mean of the known."""
    waiting = _known_or_mean(decision.members, lambda member: member.waiting, decision.now)
    usage = kv_usage(decision)
    if waiting is None:
        waiting = [float(member.prefill.prefilling) for member in decision.members]
    decision.rows = list(zip(waiting, usage, strict=True)) if usage is not None else []


def aibrix_rows(decision: Decision, ask: Ask, pool: Pool, fleet: Fleet) -> None:  # noqa: ARG001
    """Requests running as reported; unknown is the mean of the known, and our own count while none is."""
    running = _known_or_mean(decision.members, lambda member: member.running, decision.now)
    decision.rows = [(count,) for count in (decision.in_flight if running is None else running)]


def kv_usage(decision: Decision) -> list[float] | None:
    """KV usage per candidate, unknown as the mean of the known; None when nobody's is known."""
    return _known_or_mean(decision.members, lambda member: member.kv_usage_ratio, decision.now)


# -- what they pick ---------------------------------------------------------------------------------------------------


def sglang_cache_aware(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """Imbalanced: least loaded. Else the last owner of a match above 30 %, else least loaded."""
    load = decision.in_flight
    rows = decision.rows
    high, low = max(load), min(load)
    decision.totals = [owned / (decision.blocks or 1) for _, owned in rows]
    if not (high - low > _SGLANG_ABSOLUTE and high > _SGLANG_RELATIVE * low):
        best = max(decision.totals)
        if best > _SGLANG_SHARE:
            return decision.totals.index(best)
    decision.fallback = "no_match"
    near = [position for position, count in enumerate(load) if count == low]
    if len(near) > 1:
        decision.tie = "served,name"
    return min(near, key=lambda position: rows[position][0])


def dynamo_cost(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """Fewest blocks: those to prefill here, queued ones included, plus those in use."""
    blocks = decision.blocks
    decision.totals = totals = [
        max(pending + blocks - depth, 0.0) + active
        for (pending, active), depth in zip(decision.rows, decision.depths, strict=True)
    ]
    return _drawn(decision, [p for p, total in enumerate(totals) if total == min(totals)], rng)


def llm_d_default(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """Weighted sum of matched share (3), short queue (2) and free KV memory (2)."""
    if not decision.rows:
        decision.fallback = "no_signal"
        busy = decision.busy
        decision.totals = [-count for count in busy]
        return busy.index(min(busy))
    waiting = [row[0] for row in decision.rows]
    longest, shortest = max(waiting), min(waiting)
    spread = longest - shortest
    blocks = decision.blocks or 1
    decision.totals = totals = [
        _LLM_D_PREFIX * depth / blocks
        + _LLM_D_QUEUE * ((longest - queued) / spread if spread else 1.0)
        + _LLM_D_KV * (1.0 - usage)
        for (queued, usage), depth in zip(decision.rows, decision.depths, strict=True)
    ]
    return _drawn(decision, [p for p, total in enumerate(totals) if total == max(totals)], rng)


def aibrix_prefix(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """Imbalanced: least running. Else the deepest match that is not much busier than the mean."""
    running = [row[0] for row in decision.rows]
    least = min(running)
    lightest = [position for position, count in enumerate(running) if count == least]
    decision.totals = running
    if max(running) - least > _AIBRIX_IMBALANCE:
        return _drawn(decision, lightest, rng)
    mean = sum(running) / len(running)
    sigma = math.sqrt(sum((count - mean) ** 2 for count in running) / len(running))
    depths = decision.depths
    order = sorted(range(len(running)), key=lambda position: (-depths[position], running[position]))
    for position in order:
        if depths[position] and running[position] <= mean + _AIBRIX_SIGMAS * sigma:
            return position
    decision.fallback = "no_match"
    return lightest[0]


# -- shared -----------------------------------------------------------------------------------------------------------


def _known_or_mean(
    members: list[EndpointState], signal: Callable[[EndpointState], float | None], now: float
) -> list[float] | None:
    values = [signal(member) if now < member.prefill.heard_until else None for member in members]
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    return [mean if value is None else value for value in values]


def _drawn(decision: Decision, near: list[int], rng: Rng) -> int:
    """One of the equals, from `rng`; nothing is drawn when there is only one."""
    if len(near) == 1:
        return near[0]
    decision.tie = "rng"
    draw = rng.randrange(len(near))
    decision.draws = [draw]
    return near[draw]
