"""The default policy: one cost in seconds per candidate, lowest wins (scheduling §5.2).

`total = κ·queue_s + W + (β + π·p)·W/f + γ·n·W + δ·busy·step_s + evict_s + guard_s`, `W` the seconds to prefill what is
not cached, `f` how many times as long as the pool's usual endpoint this one takes (what a prefill costs the others is
priced as the same prefill costs the pool; that an endpoint is slow is in `W` already), `p` the share of its recent time
that the endpoint was given as prefill: answers running there have been slowed already, and a queue that is empty again
does not tell.

One setting for chats, agents and traffic without reuse. `rows` gathers what the formula reads; `totals` is the formula,
live and in explanations alike; `hold` says when binding late is better than any candidate.
"""

from __future__ import annotations

import math
from typing import Final

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet
from turnout.core.kit.rng import Rng
from turnout.core.kit.rotation import Rotation
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Costs, Decision
from turnout.core.scheduling.ties import lowest

COLUMNS = ("uncached", "a", "b", "queue_s", "running", "pace", "busy", "step_s", "evict_s", "guard_s", "factor")
PRICED: Final = frozenset(("turnout", "least_predicted_ttft"))
_QUEUE: Final = COLUMNS.index("queue_s")
_GATE_LOOK_S: Final = 0.5  # a gated request is looked at again after this time, if nothing happens before
_HOLD_LOOK_S: Final = 0.05
_COLD: Final = 0.5  # a request is cold when nobody holds this share of its blocks


def rows(decision: Decision, ask: Ask, fleet: Fleet) -> None:  # noqa: ARG001 - every gatherer is asked alike
    """Fill in `rows` and `totals`."""
    now = decision.now
    tokens = decision.tokens
    cached = decision.cached
    costs = decision.costs
    eviction, ageing = costs.eviction, -1.0 / costs.eviction_tau_s
    block_tokens = ask.block_tokens
    exp = math.exp
    out: list[tuple[float, ...]] = []
    # Conditional expressions and not max(): the hottest loop of scheduling, and a call costs more than they do.
    for member, held, busy in zip(decision.members, cached or decision.depths, decision.busy):  # noqa: B905 - parallel by construction
        prefill = member.prefill
        uncached: float = tokens - held if cached else tokens
        running = busy - prefill.prefilling
        queue = prefill.queue_s(now) if prefill.work_s or now < prefill.heard_until or now < prefill.blind_s else 0.0
        evict = guard = 0.0
        cache = member.cache
        if cache is not None:
            evicted, age = cache.pressure(uncached / block_tokens, now)
            if evicted > 0.0:
                evict = eviction * exp(age * ageing) * evicted * block_tokens * prefill.a
            if member.kv_capacity_tokens:
                guard = _guard(member, uncached, costs, now)
        out.append(
            (
                uncached if uncached > 1.0 else 1.0,  # noqa: FURB136
                prefill.a,
                prefill.b,
                queue,
                running if running > 0 else 0,  # noqa: FURB136
                prefill.pace(now),
                busy,
                prefill.step_s,
                evict,
                guard,
                prefill.factor,
            )
        )
    decision.rows = out
    decision.totals = totals(decision) if decision.policy == "turnout" else predicted_ttft(decision)


def totals(decision: Decision) -> list[float]:
    """Return the formula over `rows`: seconds per candidate."""
    tokens = decision.tokens
    costs = decision.costs
    kappa = costs.queue
    beta = costs.shadow_price
    gamma = costs.interference
    pi = costs.pace
    delta = costs.decode
    return [
        kappa * queue
        + (a * uncached + b * uncached * (tokens - 0.5 * uncached))
        * (1.0 + (beta + pi * pace) / factor + gamma * running)
        + delta * busy * step
        + evict
        + guard
        for uncached, a, b, queue, running, pace, busy, step, evict, guard, factor in decision.rows
    ]


def terms(decision: Decision, position: int) -> dict[str, float]:
    """Return the parts of one candidate's total, in seconds; they add up to it but for rounding."""
    uncached, a, b, queue, running, pace, busy, step, evict, guard, factor = decision.rows[position]
    work = a * uncached + b * uncached * (decision.tokens - 0.5 * uncached)
    if decision.policy != "turnout":
        return {"queue_s": queue, "prefill_s": work}
    costs = decision.costs
    return {
        "queue_s": costs.queue * queue,
        "prefill_s": work,
        "shadow_s": costs.shadow_price / factor * work,
        "interference_s": costs.interference * running * work,
        "pace_s": costs.pace * pace / factor * work,
        "decode_s": costs.decode * busy * step,
        "evict_s": evict,
        "guard_s": guard,
    }


def pick(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001 - every policy is asked alike
    """Take the lowest total; ties by recency of affinity, load, rotation."""
    return lowest(decision, decision.totals, rotation)


def prefill_s(decision: Decision) -> list[float]:
    """Return `W` per candidate: the seconds to prefill what it does not hold."""
    tokens = decision.tokens
    return [row[1] * row[0] + row[2] * row[0] * (tokens - 0.5 * row[0]) for row in decision.rows]


def predicted_ttft(decision: Decision) -> list[float]:
    """Return `queue_s + W` per candidate: the rival that looks at one request only."""
    return [row[_QUEUE] + work for row, work in zip(decision.rows, prefill_s(decision), strict=True)]


def pick_predicted_ttft(decision: Decision, rotation: Rotation, rng: Rng) -> int:  # noqa: ARG001
    """Take the lowest predicted time to first token."""
    return lowest(decision, decision.totals, rotation)


def hold(decision: Decision, ask: Ask, fleet: Fleet) -> bool:
    """Tell whether the request waits for a better moment; fills in `held` and `retry_at`.

    Binding late costs nothing while every engine has work queued, and leaves the choice open until it matters.
    """
    scheduling = fleet.scheduling
    # Most requests find an endpoint with nothing queued, and often it is the first one that is looked at.
    limit = scheduling.hold_prefill_s
    if (
        limit
        and decision.rows[0][_QUEUE] > limit
        and decision.members[0].prefill.samples >= scheduling.hold_samples
        and hold_for_queue(decision, [*range(len(decision.rows))], ask, fleet)
    ):
        return True
    return scheduling.gate_regret < 1.0 and _gated(decision, ask, fleet)


def hold_for_queue(decision: Decision, among: list[int], ask: Ask, fleet: Fleet) -> bool:
    """Tell whether a request waits because each of these candidates has enough queued; fills in `held`, `retry_at`."""
    scheduling = fleet.scheduling
    limit, now = scheduling.hold_prefill_s, decision.now
    if not limit or not among or now + _HOLD_LOOK_S >= ask.deadline_s:
        return False
    queued = math.inf
    for position in among:
        # A queue that only the prior tells of is not known: waiting for it would hide the engines' real speed for ever.
        if decision.members[position].prefill.samples < scheduling.hold_samples:
            return False
        queue = decision.rows[position][_QUEUE]
        if queue <= limit:
            return False
        queued = min(queued, queue)
    decision.held = "queue"
    decision.retry_at = now + max(queued - limit, _HOLD_LOOK_S)
    return True


def least_prefill_s(decision: Decision) -> float:
    """Return the seconds of prefill at the candidate where it is shortest: the order of held requests."""
    return min(prefill_s(decision), default=0.0)


def _gated(decision: Decision, ask: Ask, fleet: Fleet) -> bool:
    """The cold gate: a new session waits while its blocks would only be thrown away again."""
    if not decision.blocks:
        return False
    scheduling = fleet.scheduling
    now = decision.now
    until = ask.arrived_s + scheduling.gate_wait_s  # compared as it is returned: rounding must not ask again at `now`
    if now >= until or now + _GATE_LOOK_S >= ask.deadline_s:
        return False
    if max(decision.depths) >= _COLD * decision.blocks:
        return False
    regret = fleet.ghosts.regret(now)
    if regret < scheduling.gate_regret:
        return False
    best = decision.totals.index(min(decision.totals))
    cache = decision.members[best].cache
    if cache is None:
        return False
    evicted, age = cache.pressure(decision.rows[best][0] / ask.block_tokens, now)
    if evicted <= 0.0 or age >= scheduling.gate_age_s:
        return False
    decision.regret = regret
    decision.held = "cold_gate"
    decision.retry_at = min(now + _GATE_LOOK_S, until)
    return True


def _guard(member: EndpointState, uncached: float, costs: Costs, now: float) -> float:
    """Return the fear of preemption: seconds per share of the memory beyond what should be in use."""
    capacity = member.kv_capacity_tokens
    if not capacity:
        return 0.0
    usage = member.kv_usage_ratio
    used = float(member.active_tokens)
    if usage is not None and now < member.prefill.heard_until:
        used = usage * capacity
    over = (used + uncached) / capacity - costs.guard_ratio
    return costs.guard_s * over if over > 0.0 else 0.0
