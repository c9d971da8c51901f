"""The exact index against plain sets, residency against a plain LRU, and seats that give everything back."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.core import options
from turnout.core.fleet.precision import Mode
from turnout.core.fleet.registry import Fleet
from turnout.core.fleet.report import Report
from turnout.core.prefix.exact import ExactIndex, ExactStream
from turnout.core.prefix.residency import Ghosts, Residency
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.pipeline import schedule
from turnout.core.scheduling.policies import POLICIES
from turnout.core.scheduling.seats import take_seat
from turnout.core.scheduling.types import Verdict

CHAIN = list(range(1, 9))
CREDITS = (1.0, 0.8, 0.6, 0.3)

step = st.tuples(
    st.sampled_from(["store", "store", "remove", "gap", "drop_older", "close"]),
    st.integers(0, 2),
    st.sampled_from(CHAIN),
    st.integers(0, 3),
)


def brute(held: dict[int, set[tuple[int, int]]], stream: int, keys: list[int]) -> float:
    """Credit of a stream: contiguous depths with more and more tiers, each further block at its tier's worth."""
    total, before = 0.0, 0
    for tier, credit in enumerate(CREDITS):
        depth = 0
        for key in keys:
            if not any((key, below) in held[stream] for below in range(tier + 1)):
                break
            depth += 1
        total += credit * (depth - before)
        before = depth
    return total


@settings(max_examples=100, deadline=None)
@given(script=st.lists(step, max_size=60), length=st.integers(1, 8))
def test_contiguous_depth_equals_brute_force(script: list[tuple[str, int, int, int]], length: int) -> None:
    index = ExactIndex(CREDITS)
    streams: list[ExactStream] = [index.open(16) for _ in range(3)]
    held: dict[int, set[tuple[int, int]]] = {0: set(), 1: set(), 2: set()}
    older: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for what, which, key, tier in script:
        stream = streams[which]
        if what == "store":
            index.stored(stream, [(key + 1000, key)], tier)
            held[which].add((key, tier))
            older[which].discard(key)
        elif what == "remove":
            index.removed(stream, [key + 1000], tier)
            held[which].discard((key, tier))
        elif what == "gap":
            index.gap(stream)
            older[which] = {known for known, _ in held[which]}
        elif what == "drop_older":
            index.drop_older(stream)
            held[which] = {pair for pair in held[which] if pair[0] not in older[which]}
            older[which] = set()
        else:
            index.close(stream, "gone")
            streams[which] = index.open(16)
            held[which] = set()
            older[which] = set()
        found = index.match(CHAIN[:length], index.live)
        for number, one in enumerate(streams):
            assert abs(found.get(one.bit, 0.0) - brute(held, number, CHAIN[:length])) < 1e-9
        assert index.pairs == sum(len({known for known, _ in blocks}) for blocks in held.values())


@settings(max_examples=100, deadline=None)
@given(
    chains=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=40),
    capacity=st.integers(3, 12),
)
def test_residency_is_an_lru_of_chains(chains: list[tuple[int, int]], capacity: int) -> None:
    ghosts = Ghosts(1000)
    cache = Residency(capacity, ghosts)
    plain: dict[int, None] = {}
    for number, (root, length) in enumerate(chains):
        keys = [1 + root * 100 + position for position in range(length)]
        depth = next((position for position, key in enumerate(keys) if key not in plain), length)
        gone = cache.touch(keys, depth, float(number))
        for key in reversed(keys):  # ancestors are younger than what follows them
            plain.pop(key, None)
            plain[key] = None
        expected = []
        while len(plain) > capacity:
            oldest = next(iter(plain))
            del plain[oldest]
            expected.append(oldest)
        assert gone == expected
        assert cache.blocks == len(plain)
        needed, _ = cache.pressure(1.0, float(number))
        assert needed == (1.0 if len(plain) == capacity else 0.0)


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    script=st.lists(st.tuples(st.sampled_from("aaafpeeorx"), st.integers(0, 40)), max_size=60),
    seed=st.integers(0, 5),
)
def test_seats_give_everything_back(  # noqa: C901 - a script of events
    policy: str, script: list[tuple[str, int]], seed: int
) -> None:
    given_ = options.Scheduling(policy=policy)  # type: ignore[arg-type]
    fleet = Fleet(given_, options.Prefix(retention="refcount"), options.Breaker())
    rng = random.Random(seed)
    for name in ("a", "b", "c"):
        fleet.add(options.Endpoint(name=name, url="http://h:1", models=["m"], cache_tokens=2000), 0.0)
    fleet.open_stream(fleet.endpoints["b"], 64)
    fleet.endpoints["b"].mode = Mode.EXACT
    pool = fleet.pool("m")
    assert pool is not None
    everybody = list(pool.members)
    seats = []
    now = 0.0
    for what, number in script:
        now += 0.1
        if what == "a":
            keys = list(range(100 * (number % 4), 100 * (number % 4) + number % 7))
            ask = Ask("m", keys, 64 * len(keys) + 10, 1, chains={64: keys}, may_hold=True)
            decision = schedule(ask, pool, fleet, now, rng)
            if decision.verdict is Verdict.PICKED:
                assert decision.picked is not None
                assert not decision.picked.gone
                seats.append(take_seat(decision, ask, pool, fleet, now))
        elif what == "o":
            state = everybody[number % 3]
            fleet.observed(state, state.sent(now), Report(running=number, waiting=number % 3, kv_usage_ratio=0.5))
        elif what == "x":
            state = everybody[number % 3]
            if fleet.endpoints.get(state.name) is state and len(fleet.endpoints) > 1:
                fleet.remove(state.name)
        elif seats:
            seat = seats[number % len(seats)]
            if what == "f":
                seat.first_byte(now)
            elif what == "p":
                seat.progress(number)
            else:
                seat.ended(now, failed=what == "r", tokens_out=number, cached=number)
    for seat in seats:
        seat.ended(now, failed=False)
        seat.ended(now, failed=True)
        seat.first_byte(now)
        seat.progress(5)
    for state in everybody:
        prefill = state.prefill
        assert (state.in_flight, state.active_tokens, state.pending_prefill_tokens) == (0, 0, 0)
        assert (prefill.prefilling, prefill.work_s) == (0, 0.0)
        if state.active_blocks is not None:
            assert abs(state.active_blocks.distinct) < 1e-6
    # Blocks of a removed endpoint go with their map, not one by one.
    assert fleet.index.entries == 0 or len(fleet.endpoints) < 3
