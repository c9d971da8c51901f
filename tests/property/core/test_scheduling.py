"""What must hold of every decision, whatever the fleet looks like."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.core import options
from turnout.core.fleet.breaker import Breaker, State
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.explain import explain, recompute
from turnout.core.scheduling.pipeline import schedule
from turnout.core.scheduling.policies import NEED_RECENCY, POLICIES

TREE = [1, 2, 3, 4, 5, 6, 7, 8]

member = st.fixed_dictionaries(
    {
        "in_flight": st.integers(0, 5),
        "depth": st.integers(0, 8),
        "report": st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9), st.floats(-10, 0)),
        "marks": st.sampled_from(["", "", "", "", "draining", "unreachable", "probe_failing", "standby"]),
        "breaker": st.sampled_from(["", "", "", "open", "slow"]),
        "context_max": st.sampled_from([None, None, 50, 150]),
    }
)
members = st.lists(member, min_size=1, max_size=7)


def build(policy: str, described: list[dict[str, Any]], order: list[int]) -> tuple[Fleet, Pool]:
    fleet = Fleet(options.Scheduling(policy=policy, seed=5), options.Prefix(), options.Breaker())  # type: ignore[arg-type]
    for position in order:
        given_ = described[position]
        state = fleet.add(
            options.Endpoint(
                name=f"e{position}",
                url="http://127.0.0.1:1",
                models=["m"],
                max_in_flight=5,
                context_max=given_["context_max"],
            ),
            0.0,
        )
        state.in_flight = given_["in_flight"]
        if given_["report"] is not None:
            running, waiting, at = given_["report"]
            state.reported(at, 0, running, waiting)
        if given_["marks"]:
            setattr(state, given_["marks"], True)
        if given_["breaker"] == "open":
            for _ in range(3):
                state.breaker.fault(state.breaker.opened(0.0), 0.0)
        elif given_["breaker"] == "slow":
            state.breaker.start_slowly(-15.0)
        fleet.index.record(TREE[: given_["depth"]], state.bit, 0.0)
    pool = fleet.pool("m")
    assert pool is not None
    return fleet, pool


@settings(max_examples=80, deadline=None)
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    described=members,
    seed=st.integers(0, 9),
    length=st.integers(0, 8),
    data=st.data(),
)
def test_any_order_of_registration_gives_the_same_decision(
    policy: str, described: list[dict[str, Any]], seed: int, length: int, data: st.DataObject
) -> None:
    names = range(len(described))
    order = data.draw(st.permutations(list(names)))
    documents = []
    for registered in (list(names), order):
        fleet, pool = build(policy, described, registered)
        rng = random.Random(seed)
        document = [explain(schedule(Ask("m", TREE[:length], 500, 100), pool, fleet, 0.0, rng), "r") for _ in range(3)]
        for decision in document:
            for candidate in decision["candidates"]:
                del candidate["incarnation"]
                candidate.pop("recency", None)
        documents.append(document)
    if policy in NEED_RECENCY:
        # Recency is history: which endpoint got the first block last does depend on the order of records.
        for document in documents:
            for decision in document:
                for part in ("picked", "candidates", "tie", "seed", "previous", "uncached_tokens"):
                    del decision[part]
    assert documents[0] == documents[1]


@settings(max_examples=80, deadline=None)
@given(policy=st.sampled_from(sorted(POLICIES)), described=members, seed=st.integers(0, 9), length=st.integers(0, 8))
def test_every_member_is_candidate_or_dropped_and_the_document_recomputes(
    policy: str, described: list[dict[str, Any]], seed: int, length: int
) -> None:
    fleet, pool = build(policy, described, list(range(len(described))))
    entries = fleet.index.entries
    decision = schedule(Ask("m", TREE[:length], 500, 100), pool, fleet, 0.0, random.Random(seed))
    candidates = list(decision.names)
    assert sorted([*candidates, *(name for name, _ in decision.dropped)]) == [state.name for state in pool.members]
    assert (decision.picked is None) == (not candidates)
    assert fleet.index.entries == entries
    document = json.loads(json.dumps(explain(decision, "r")))
    totals = [candidate["total"] for candidate in document["candidates"]]
    assert recompute(document) == (document["picked"], totals)
    picked = decision.picked
    if picked is not None:
        assert not picked.draining
        assert not picked.unreachable
        assert picked.in_flight < picked.places
        assert decision.depths[candidates.index(picked.name)] == decision.matched_blocks
        assert 1 <= decision.uncached <= 500


@settings(max_examples=80, deadline=None)
@given(script=st.lists(st.tuples(st.sampled_from("ofend"), st.integers(0, 30)), max_size=60))
def test_counters_are_never_negative_and_return_to_zero(script: list[tuple[str, int]]) -> None:
    fleet, _ = build("affinity_load", [{**EASY}], [0])
    state = fleet.endpoints["e0"]
    open_: list[tuple[int, int]] = []
    for step, number in script:
        if step == "o":
            state.opened(number, number // 2)
            open_.append((number, number // 2))
        elif step == "f" and open_:
            tokens, uncached = open_.pop()
            state.first_byte(uncached)
            open_.insert(0, (tokens, 0))
        elif step == "e" and open_:
            state.ended(*open_.pop())
        elif step == "n":
            state.ended(0)  # an end that was never opened
            open_ = open_[: state.in_flight]
        assert min(state.in_flight, state.pending_prefill_tokens, state.active_tokens) >= 0
    while state.in_flight:
        state.ended(*(open_.pop() if open_ else (10**6, 10**6)))
    assert state.in_flight == 0


EASY: dict[str, Any] = {"in_flight": 0, "depth": 0, "report": None, "marks": "", "breaker": "", "context_max": None}


@settings(max_examples=100, deadline=None)
@given(script=st.lists(st.tuples(st.sampled_from("osfnt"), st.integers(0, 50)), max_size=80))
def test_breaker_always_has_a_way_back_and_one_probe_at_a_time(script: list[tuple[str, int]]) -> None:
    breaker = Breaker(options.Breaker())
    now = 0.0
    open_: list[int] = []
    for step, number in script:
        if step == "t":
            now += number
        elif step == "o":
            if breaker.allow(now):
                open_.append(breaker.opened(now))
                assert breaker.state is State.CLOSED or not breaker.allow(now)
        elif open_:
            epoch = open_.pop(number % len(open_))
            {"s": breaker.success, "f": breaker.fault, "n": breaker.neutral}[step](epoch, now)
        assert breaker.plain <= (breaker.state is State.CLOSED)
        assert breaker.reopen_at - now <= 60.0
        assert 0.1 <= breaker.share(now) <= 1.0
    # T81: whatever happened, after the longest lease an attempt may open, and its success closes the breaker.
    now += 700.0
    assert breaker.allow(now)
    breaker.success(breaker.opened(now), now)
    assert breaker.state is State.CLOSED
