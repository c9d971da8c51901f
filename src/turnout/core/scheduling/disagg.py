"""Whether a request is split, and between which two endpoints: one decision for both legs, before anything is sent.

The default is the adaptive joint choice: the cheapest pair (queue and prefill on P, transfer, load of D) against the
cheapest endpoint alone (queue and prefill there, dearer for each answer that runs beside it), in seconds. Since both
sides are priced with the same columns, the ratio of prefill to decode endpoints stops mattering. With policies that are
not in seconds, D is picked first by its rule, then P by its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from turnout.core.disagg_options import Disagg
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet, Pool, roster
from turnout.core.kit.rng import Rng
from turnout.core.scheduling import turnout
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision, PairDecision, PairFacts
from turnout.core.scheduling.filters import Drop, keep
from turnout.core.scheduling.knowledge import expected, told
from turnout.core.scheduling.load import busy_column
from turnout.core.scheduling.pairing import Facts, Pairing, Split
from turnout.core.scheduling.pipeline import depths_of, schedule
from turnout.core.scheduling.splitting import broken, full, missing, never_fits, never_split, sees_images, wants_split

_BEST = 32
_WISHES = ("pair_attempts", "one_token")  # reasons that yield when nobody may serve alone
_ALIKE_S = 1e-6
_UNCACHED, _QUEUE, _RUNNING, _BUSY, _STEP, _EVICT, _GUARD = 0, 3, 4, 6, 7, 8, 9


def pairing(options: Disagg) -> Pairing:
    """Return what a fleet needs to schedule pairs: set it as `fleet.pairing` before endpoints are added."""
    return Pairing(options, choose)


def choose(pairing: Pairing, split: Split, ask: Ask, pool: Pool, fleet: Fleet, now: float, rng: Rng) -> Decision:
    """Decide both legs of one attempt, or that one endpoint serves it alone."""
    prefill_policy = pairing.options.prefill_policy or ask.policy or pool.policy
    if prefill_policy in turnout.PRICED and pairing.options.decode_policy is None:
        return _jointly(pairing, split, ask, pool, fleet, now, rng)
    return _in_turn(pairing, split, ask, prefill_policy, fleet, now, rng)


def _jointly(pairing: Pairing, split: Split, ask: Ask, pool: Pool, fleet: Fleet, now: float, rng: Rng) -> Decision:
    options = pairing.options
    prefills, decodes, dropped, relaxed = _kept(split, ask, now, rng)
    members = sorted({m.name: m for m in (*prefills, *decodes)}.values(), key=lambda member: member.name)
    decision = _columns(ask, members, pool, fleet, now, dropped, relaxed)
    if not members or never_fits(split, ask):
        return _nobody(decision, split, prefills, decodes, ask)
    rows = decision.rows
    place = {member.name: position for position, member in enumerate(members)}
    work = turnout.prefill_s(decision)
    facts = split.facts
    first = {p.name: rows[place[p.name]][_QUEUE] + work[place[p.name]] + rows[place[p.name]][_EVICT] for p in prefills}
    second = {d.name: _decode_s(rows[place[d.name]]) + rows[place[d.name]][_GUARD] for d in decodes}
    kept = [d for d in decodes if d.name == ask.decode] if ask.decode else []
    pairs, quarantined = _pairs(pairing, prefills, kept or decodes, first, second, now)
    lacks = {d.name: rows[place[d.name]][_UNCACHED] for d in decodes}
    best_pair = _cheapest(pairing, pool, pairs, first, second, lacks)
    solo = _best_solo(options.interference, options.memory_max, facts, members, rows, work, decodes)
    if solo is not None and broken(relaxed, "prefill:"):
        best_pair = None  # F54: nobody prefills but those believed broken, and one endpoint alone will do
    reason = never_split(ask, options.max_pair_attempts, multimodal=sees_images(facts, (*prefills, *decodes)))
    pair_s = best_pair[0] if best_pair is not None else float("inf")
    solo_s = solo[0] if solo is not None else float("inf")
    uncached = min(lacks.values(), default=float(ask.tokens))
    notes = PairFacts(options.decider, uncached, ask.tokens, pair_s, solo_s)
    splits = best_pair is not None and not reason and wants_split(pairing, uncached, ask.tokens, pair_s, solo_s)
    if ask.may_hold and not ask.tried and prefills:
        # Bind late while everybody who might prefill has enough queued: the choice stays open until it matters.
        certain = solo is None or (splits and options.decider != "seconds")
        prefilling = [place[member.name] for member in (prefills if certain else members)]
        if turnout.hold_for_queue(decision, prefilling, ask, fleet):
            return decision
    saturated = best_pair is None and not reason and full(split.prefill.members, dropped)
    if saturated and uncached > options.solo_relief_tokens:
        solo = None  # it waits for a prefill endpoint: beside the answers it would cost too much
    if best_pair is None and solo is None:
        if quarantined:
            decision.dropped = (*decision.dropped, ("", "pair_quarantined"))
        return _nobody(decision, split, prefills, decodes, ask)
    if solo is not None and not splits:
        without = "prefill_saturated" if saturated else "no_pair"
        notes.reason = reason or (without if best_pair is None else options.decider)
        return _settled(decision, ask, place[solo[1].name], None, notes)
    if best_pair is None or (reason and reason not in _WISHES):
        notes.reason = reason
        decision.picked = None
        decision.dropped = (*decision.dropped, ("", reason or "no_pair"))
        return decision
    _, notes.transfer_s, p, d = best_pair
    notes.reason = options.decider
    return _settled(decision, ask, place[d.name], place[p.name], notes)


def _cheapest(
    pairing: Pairing,
    pool: Pool,
    pairs: list[tuple[EndpointState, EndpointState]],
    first: dict[str, float],
    second: dict[str, float],
    lacks: dict[str, float],
) -> tuple[float, float, EndpointState, EndpointState] | None:
    """Return (total, transfer, P, D) of the cheapest pair; equal ones take turns."""
    alike: list[tuple[float, float, EndpointState, EndpointState]] = []
    for p, d in pairs:
        transfer = pairing.transfer_s(p.name, d.name, lacks[d.name])
        scored = (first[p.name] + transfer + second[d.name], transfer, p, d)
        if not alike or scored[0] < alike[0][0] - _ALIKE_S:
            alike = [scored]
        elif scored[0] <= alike[0][0] + _ALIKE_S:
            alike.append(scored)
    if len(alike) < 2:  # noqa: PLR2004 - nothing to choose from
        return alike[0] if alike else None
    # Equal totals: fewer open attempts at either end, then in turn, as for single endpoints.
    fewest = min(p.in_flight + d.in_flight for _, _, p, d in alike)
    alike = [scored for scored in alike if scored[2].in_flight + scored[3].in_flight == fewest]
    return alike[pool.rotation.turn(len(alike))] if len(alike) > 1 else alike[0]


def _nobody(
    decision: PairDecision, split: Split, prefills: list[EndpointState], decodes: list[EndpointState], ask: Ask
) -> PairDecision:
    """Pick nobody, and say which role has nobody for this request."""
    decision.picked = None
    decision.dropped = (*decision.dropped, *(("", why) for why in missing(split, ask, decodes, prefills)))
    return decision


def _in_turn(pairing: Pairing, split: Split, ask: Ask, policy: str, fleet: Fleet, now: float, rng: Rng) -> Decision:
    """D by the decode rule, then P by the prefill rule among those that can hand over to it."""
    options = pairing.options
    facts = split.facts
    asked, ask.policy = ask.policy, options.decode_policy or "memory_aware"
    may_hold, ask.may_hold = ask.may_hold, False  # what is held is prefill
    whole_pool = split.decode.roster
    kept = [d for d in whole_pool.members if d.name == ask.decode] if ask.decode else []
    if kept and keep(ask, kept, now, rng)[0]:
        split.decode.roster = roster(kept)
    decode = schedule(ask, split.decode, fleet, now, rng)
    split.decode.roster = whole_pool
    ask.policy, ask.may_hold = policy, may_hold
    sees = sees_images(facts, (*split.prefill.members, *split.decode.members))
    reason = never_split(ask, options.max_pair_attempts, multimodal=sees)
    d = decode.picked
    prefill: Decision | None = None
    if d is not None:
        able = [m for m in split.prefill.members if m is not d and pairing.hands_over(m.name, d.name)]
        able = _not_resting(pairing, able, d, now)
        if able:
            whole_pool = split.prefill.roster
            split.prefill.roster = roster(able)
            prefill = schedule(ask, split.prefill, fleet, now, rng)
            split.prefill.roster = whole_pool
    ask.policy = asked
    p = prefill.picked if prefill is not None else None
    if prefill is not None and d is not None and facts[d.name].solo and broken(prefill.relaxed):
        p, reason = None, reason or "no_pair"
    if d is None or never_fits(split, ask):
        decode.picked = None
        decode.dropped = (*decode.dropped, *(("", why) for why in missing(split, ask, None if d is None else [d])))
        return decode
    if prefill is not None and prefill.held:
        return prefill
    if p is None or reason:
        return _alone(facts, decode, prefill, reason or "prefill_saturated", options.solo_relief_tokens)
    transfer = pairing.transfer_s(p.name, d.name, float(decode.uncached))
    pair_s = p.prefill.queue_s(now) + p.prefill.work_of(ask.tokens, prefill.uncached) + transfer  # type: ignore[union-attr]  # p is its pick
    solo_s = float("inf")
    if facts[d.name].solo:
        running = max(0, d.in_flight - d.prefill.prefilling)
        work = d.prefill.work_of(ask.tokens, decode.uncached)
        solo_s = d.prefill.queue_s(now) + work * (1.0 + options.interference * running)
    notes = PairFacts(options.decider, float(decode.uncached), ask.tokens, pair_s, solo_s)
    notes.transfer_s = transfer
    notes.reason = options.decider
    if facts[d.name].solo and not wants_split(pairing, float(decode.uncached), ask.tokens, pair_s, solo_s):
        return _as_pair(decode, None, notes)
    return _as_pair(decode, prefill, notes)


def _alone(facts: dict[str, Facts], decode: Decision, prefill: Decision | None, reason: str, relief: int) -> Decision:
    """Serve without a pair where that is allowed; else say why nobody can."""
    d = decode.picked
    notes = PairFacts("", float(decode.uncached), decode.tokens, float("inf"), float("inf"))
    notes.reason = reason
    small = reason != "prefill_saturated" or decode.uncached <= relief or prefill is None
    if d is not None and facts[d.name].solo and small:
        return _as_pair(decode, None, notes)
    decode.picked = None
    dropped = prefill.dropped if prefill is not None else ()
    decode.dropped = (*decode.dropped, *dropped, ("", reason))
    return decode


def _not_resting(pairing: Pairing, able: list[EndpointState], d: EndpointState, now: float) -> list[EndpointState]:
    """Leave out pairs in quarantine, unless that leaves nobody: a soft filter."""
    rested = [m for m in able if not pairing.resting(m.name, d.name, now)]
    return rested or able


def _kept(
    split: Split, ask: Ask, now: float, rng: Rng
) -> tuple[list[EndpointState], list[EndpointState], tuple[Drop, ...], tuple[str, ...]]:
    """Filter each role for itself: a soft filter relaxed for one leg is named with that leg."""
    prefills, dropped_p, relaxed_p = keep(ask, split.prefill.members, now, rng)
    decodes, dropped_d, relaxed_d = keep(ask, split.decode.members, now, rng)
    dropped = tuple(sorted({*dropped_p, *dropped_d}))
    relaxed = tuple([f"prefill:{name}" for name in relaxed_p] + [f"decode:{name}" for name in relaxed_d])
    return prefills, decodes, dropped, relaxed


def _columns(
    ask: Ask,
    members: list[EndpointState],
    pool: Pool,
    fleet: Fleet,
    now: float,
    dropped: tuple[Drop, ...],
    relaxed: tuple[str, ...],
) -> PairDecision:
    """What the default policy reads, for every candidate of either role."""
    index = fleet.index
    if now >= index.due:
        index.advance(now)
    candidates = roster(members)
    in_flight: list[float] = [member.in_flight for member in members]
    busy, reports = busy_column(members, in_flight, now)
    depths, result = depths_of(ask.keys, index, candidates)
    columns = Decision(
        None, ask.model, "turnout", members, candidates.names, depths, busy, in_flight, len(ask.keys), ask.tokens,
        ask.block_tokens, fleet.scheduling.affinity_beta, result, now, pool.rotation.counter, pool.last, dropped,
        relaxed, reports,
    )  # fmt: skip
    decision = PairDecision(columns)
    if members:
        if ask.chains and fleet.exact.live:
            told(decision, ask, fleet)
        if decision.prefix_result == "match":
            decision.cached = expected(decision, ask)
        turnout.rows(decision, ask, fleet)
    return decision


def _decode_s(row: Sequence[float]) -> float:
    """What one more answer costs where others run: alone it spreads answers over decode endpoints."""
    return row[_BUSY] * row[_STEP]


def _pairs(
    pairing: Pairing,
    prefills: list[EndpointState],
    decodes: list[EndpointState],
    first: dict[str, float],
    second: dict[str, float],
    now: float,
) -> tuple[list[tuple[EndpointState, EndpointState]], bool]:
    """Return the pairs that can hand over and are not resting (resting ones when no other is left)."""
    if len(prefills) * len(decodes) > pairing.options.max_pairs:
        prefills = sorted(prefills, key=lambda m: (first[m.name], m.name))[:_BEST]
        decodes = sorted(decodes, key=lambda m: (second[m.name], m.name))[:_BEST]
    fitting = [(p, d) for p in prefills for d in decodes if p is not d and pairing.hands_over(p.name, d.name)]
    rested = [(p, d) for p, d in fitting if not pairing.resting(p.name, d.name, now)]
    return (rested or fitting), len(rested) < len(fitting)


def _best_solo(
    interference: float,
    memory_max: float,
    facts: dict[str, Facts],
    members: list[EndpointState],
    rows: Sequence[tuple[float, ...]],
    work: list[float],
    decodes: list[EndpointState],
) -> tuple[float, EndpointState] | None:
    """Return the cheapest endpoint that may serve the whole request, and its total."""
    best: tuple[float, float, EndpointState] | None = None
    for member, row, seconds in zip(members, rows, work, strict=True):
        usage = member.kv_usage_ratio
        if member.role == "prefill" and decodes:
            continue  # answers beside prefills would stutter: it serves alone only where nobody decodes
        if not facts[member.name].solo or (usage is not None and usage > memory_max and member.in_flight):
            continue
        total = row[_QUEUE] + seconds * (1.0 + interference * row[_RUNNING]) + row[_EVICT] + row[_GUARD]
        total = round(total + _decode_s(row), 6)
        if best is None or (total, row[_BUSY]) < best[:2]:
            best = (total, row[_BUSY], member)
    return None if best is None else (best[0], best[2])


def _settled(decision: PairDecision, ask: Ask, position: int, prefill: int | None, notes: PairFacts) -> PairDecision:
    """Fill in what the picked endpoints mean for seats and explanations."""
    decision.picked = decision.members[position]
    decision.pair = notes
    depth, predicted, uncached = _believed(decision, ask, position)
    decision.matched_blocks, decision.predicted = depth, predicted
    decision.uncached = max(1, uncached)
    if prefill is not None:
        decision.predicted, decision.uncached = 0, 1  # what it lacks is sent to it, and its own count is not used
        decision.prefill = decision.members[prefill]
        decision.prefill_depth, decision.prefill_predicted, uncached = _believed(decision, ask, prefill)
        decision.prefill_uncached = max(1, uncached)
    return decision


def _believed(decision: Decision, ask: Ask, position: int) -> tuple[int, int, int]:
    """Return (blocks, tokens predicted to be cached, tokens to prefill) of one candidate."""
    depth = decision.depths[position]
    predicted = int(decision.credits[position]) if decision.credits else min(int(depth * ask.block_tokens), ask.tokens)
    if decision.modes:
        decision.mode = decision.modes[position]
    cached = decision.cached[position] if decision.cached else 0.0
    return depth, predicted if depth else 0, ask.tokens - int(cached)


def _as_pair(decode: Decision, prefill: Decision | None, notes: PairFacts) -> PairDecision:
    """Turn the decisions of two rules into one."""
    decision = PairDecision(decode)
    decision.pair = notes
    if prefill is not None:
        decision.prefill = prefill.picked
        decision.prefill_depth = prefill.matched_blocks
        decision.prefill_predicted = prefill.predicted
        decision.prefill_uncached = prefill.uncached
        decision.dropped = tuple(sorted({*decode.dropped, *prefill.dropped}))
        decision.predicted, decision.uncached = 0, 1
    return decision
