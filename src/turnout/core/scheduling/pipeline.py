"""filter → cost → pick: one endpoint for one attempt, with everything needed to say why (scheduling §5).

Pure but for what the rules name: the pool's rotation counter and previous pick, and the ageing of the index.
"""

from __future__ import annotations

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.kit.rng import Rng
from turnout.core.prefix.index import STALE
from turnout.core.scheduling.filters import Drop, keep
from turnout.core.scheduling.load import Report, busy_column
from turnout.core.scheduling.policies import POLICIES
from turnout.core.scheduling.types import Ask, Decision


def schedule(ask: Ask, pool: Pool, fleet: Fleet, now: float, rng: Rng) -> Decision:
    """Decide where this attempt goes; `picked` is None when no candidate is left, and `dropped` says why."""
    index = fleet.index
    if now >= index.due:
        index.advance(now)
    members = pool.members
    names = pool.names
    bits = pool.bit_column
    alive = pool.bits
    zeros = pool.zeros
    dropped: tuple[Drop, ...] = ()
    relaxed: tuple[str, ...] = ()
    in_flight: list[float] = []
    reported = False
    floor = ask.estimate_floor
    for member in members:
        count = member.in_flight
        context = member.context_max
        if (
            member.marks
            or count >= member.max_in_flight
            or not member.breaker.plain
            or (context is not None and floor > context)
        ):
            break
        if member.observed_at is not None:
            reported = True
        in_flight.append(count)
    if len(in_flight) < len(members) or ask.tried:
        members, dropped, relaxed = keep(ask, members, now, rng)
        names = tuple([member.name for member in members])
        bits = tuple([member.bit for member in members])
        zeros = [0] * len(members)
        alive = 0
        for bit in bits:
            alive |= bit
        in_flight = [member.in_flight for member in members]
        reported = True
    busy = in_flight
    reports: tuple[Report, ...] = ()
    if reported:
        busy, reports = busy_column(members, now)
    keys = ask.keys
    depths = zeros
    if keys and index.enabled:
        owners = index.match(keys, alive)
        if owners:
            result = "match"
            depth_of = owners.get
            depths = [depth_of(bit, 0) for bit in bits]
        else:
            result = "stale" if owners is STALE else "miss"
    else:
        result = "no_hash"
    rotation = pool.rotation
    decision = Decision(
        None,
        ask.model,
        pool.policy,
        members,
        names,
        depths,
        busy,
        in_flight,
        len(keys),
        ask.tokens,
        ask.block_tokens,
        fleet.scheduling.affinity_beta,
        result,
        now,
        rotation.counter,
        pool.last,
        dropped,
        relaxed,
        reports=reports,
    )
    if not members:
        return decision
    if pool.policy == "longest_prefix":
        decision.recency = _recency(ask, fleet, members, now)
    position = POLICIES[pool.policy](decision, rotation, rng)
    decision.picked = picked = members[position]
    pool.last = picked.name
    depth = depths[position]
    tokens = ask.tokens
    if depth:
        matched = depth * ask.block_tokens
        matched = matched if matched < tokens else tokens
        uncached = tokens - int(picked.precision * matched)
        decision.matched_blocks = depth
        decision.uncached = uncached if uncached > 0 else 1
    else:
        decision.uncached = tokens if tokens > 0 else 1
        if result == "match":
            decision.prefix_result = "declined"
    return decision


def _recency(ask: Ask, fleet: Fleet, members: list[EndpointState], now: float) -> list[int]:
    """2 for the endpoint of the session's pin, 1 for the last one that got this first block, else 0."""
    pinned = fleet.pinned(ask.session, now) if ask.session else None
    recent = fleet.index.recent(ask.keys[0]) if ask.keys else 0
    return [2 if member is pinned else 1 if recent and member.bit == recent else 0 for member in members]
