"""filter → cost → pick: one endpoint for one attempt, with everything needed to say why (scheduling §5).

Pure but for what the rules name: the pool's rotation counter and previous pick, and the ageing of the index.
"""

from __future__ import annotations

from collections.abc import Sequence

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet, Pool, Roster, roster
from turnout.core.kit.rng import Rng
from turnout.core.prefix.index import STALE, PrefixIndex
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision
from turnout.core.scheduling.filters import Drop, keep
from turnout.core.scheduling.knowledge import expected, held_by_rank, told
from turnout.core.scheduling.load import busy_column
from turnout.core.scheduling.policies import GATHERERS, NEED_RECENCY, POLICIES
from turnout.core.scheduling.ties import clear_winner
from turnout.core.scheduling.turnout import PRICED, hold


def schedule(ask: Ask, pool: Pool, fleet: Fleet, now: float, rng: Rng) -> Decision:
    """Decide where this attempt goes; `picked` is None when no candidate is left, and `dropped` says why."""
    if pool.pairs is not None:
        both: Decision = pool.pairs.schedule(ask, pool, fleet, now, rng)
        return both
    index = fleet.index
    if now >= index.due:
        index.advance(now)
    candidates = pool.roster
    dropped: tuple[Drop, ...] = ()
    relaxed: tuple[str, ...] = ()
    in_flight = None if ask.tried or ask.dialect or ask.weak else _all_usable(candidates.members, ask.estimate_floor)
    if in_flight is None:
        kept, dropped, relaxed = keep(ask, candidates.members, now, rng)
        candidates = roster(kept)
        in_flight = [member.in_flight for member in kept]
    members = candidates.members
    busy, reports = busy_column(members, in_flight, now)
    depths, result = depths_of(ask.keys, index, candidates)
    decision = Decision(
        None,
        ask.model,
        ask.policy or pool.policy,
        members,
        candidates.names,
        depths,
        busy,
        in_flight,
        len(ask.keys),
        ask.tokens,
        ask.block_tokens,
        fleet.scheduling.affinity_beta,
        result,
        now,
        pool.rotation.counter,
        pool.last,
        dropped,
        relaxed,
        reports,
    )
    if ask.prompt_bytes:
        decision.text_block_bytes = fleet.prefix.block_bytes
    if members:
        if ask.chains and fleet.exact.live:
            told(decision, ask, fleet)
        _pick(decision, ask, pool, fleet, rng)
    return decision


def _all_usable(members: list[EndpointState], floor: int) -> list[float] | None:
    """The in-flight counts when no filter drops anyone, the usual case; else None."""
    counts: list[float] = []
    for member in members:
        count = member.in_flight
        context = member.context_max
        if (
            member.marks
            or count >= member.places
            or not member.breaker.plain
            or (context is not None and floor > context)
        ):
            return None
        counts.append(count)
    return counts


def depths_of(keys: list[int], index: PrefixIndex, candidates: Roster) -> tuple[list[int], str]:
    """Return matched blocks per candidate, and the kind of look-up this was."""
    if not keys or not index.enabled:
        return candidates.zeros, "no_hash"
    owners = index.match(keys, candidates.alive)
    if not owners:
        return candidates.zeros, "stale" if owners is STALE else "miss"
    # owners.get(bit, 0) for each bit: the zeros are the defaults.
    return list(map(owners.get, candidates.bits, candidates.zeros)), "match"


def _pick(decision: Decision, ask: Ask, pool: Pool, fleet: Fleet, rng: Rng) -> None:
    policy = decision.policy
    members = decision.members
    depths = decision.depths
    if policy in PRICED and decision.prefix_result == "match":
        decision.cached = expected(decision, ask)
    gather = GATHERERS.get(policy)
    if gather is not None:
        gather(decision, ask, pool, fleet)
        if policy == "turnout" and ask.may_hold and not ask.tried and hold(decision, ask, fleet):
            return
    position = clear_winner(decision.totals) if policy in PRICED else -1
    if position < 0:
        if policy in NEED_RECENCY and (ask.keys or ask.session):
            decision.recency = _recency(ask, fleet, members, decision.now)
        position = POLICIES[policy](decision, pool.rotation, rng)
    decision.picked = picked = members[position]
    pool.last = picked.name
    depth = depths[position]
    uncached = ask.tokens
    if depth:
        decision.matched_blocks = depth
        precision = picked.precision
        predicted = min(int(depth * ask.block_tokens), uncached)
        if decision.modes:
            decision.mode = mode = decision.modes[position]
            precision = picked.precisions[mode].value
            predicted = int(decision.credits[position])
        decision.predicted = predicted
        uncached -= int(precision * predicted)
    elif decision.prefix_result == "match":
        decision.prefix_result = "declined"
    decision.uncached = max(1, uncached)
    if picked.ranks is not None:
        decision.dp_rank = picked.ranks.pick(held_by_rank(picked, ask, fleet), ask.affinity)


def _recency(ask: Ask, fleet: Fleet, members: list[EndpointState], now: float) -> Sequence[int]:
    """2 for the endpoint of the session's pin, 1 for the last one that got this first block, else 0; empty: all 0."""
    pinned = fleet.pinned(ask.session, now) if ask.session else None
    recent = fleet.index.recent(ask.keys[0]) if ask.keys else 0
    if pinned is None and not recent:
        return ()
    return [2 if member is pinned else 1 if recent and member.bit == recent else 0 for member in members]
