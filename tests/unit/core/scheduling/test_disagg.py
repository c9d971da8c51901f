"""Choosing both legs of a request: goldens of the deciders, pairs, backpressure, quarantine, exactly-once release."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from turnout.core import options
from turnout.core.attempt import Attempt, end_attempt
from turnout.core.disagg_options import Disagg
from turnout.core.errors import ErrorKind
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.handover import ROOM_REST_S, PairState, Rooms
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.scheduling import disagg, splitting
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import PairDecision
from turnout.core.scheduling.explain import explain
from turnout.core.scheduling.legs import Legs
from turnout.core.scheduling.pairing import Pairing
from turnout.core.scheduling.pipeline import schedule
from turnout.core.scheduling.seats import take_seat
from turnout.core.scheduling.types import Verdict


def fleet_of(
    roles: dict[str, str], disagg_options: Disagg | None = None, policy: str = "turnout", **more: Any
) -> Fleet:
    fleet = Fleet(options.Scheduling(policy=policy, seed=1, hold_samples=0), options.Prefix(), options.Breaker())  # type: ignore[arg-type]
    fleet.pairing = disagg.pairing(disagg_options or Disagg())
    for name, role in roles.items():
        endpoint = options.Endpoint(name=name, url=f"http://{name}:8000", models=["m"], role=role, **more)  # type: ignore[arg-type]
        fleet.add(endpoint, 0.0)
    return fleet


def pool_of(fleet: Fleet) -> Pool:
    pool = fleet.pool("m")
    assert pool is not None
    return pool


def decide(fleet: Fleet, tokens: int = 8000, **fields: Any) -> PairDecision:
    ask = Ask("m", [], tokens, tokens, **fields)
    decision = schedule(ask, pool_of(fleet), fleet, 1.0, random.Random(1))
    assert isinstance(decision, PairDecision)
    return decision


ROLES = {"p0": "prefill", "p1": "prefill", "d0": "decode", "d1": "decode"}
NO_SOLO: dict[str, Any] = {"solo": False}


def names(decision: PairDecision) -> tuple[str | None, str | None]:
    prefill, picked = decision.prefill, decision.picked
    return None if prefill is None else prefill.name, None if picked is None else picked.name


@pytest.mark.parametrize(
    ("decider", "tokens", "found", "split"),
    [
        ("threshold", 8192, 8000, False),
        ("conditional", 8192, 8000, False),
        ("threshold", 300, 0, True),
        ("conditional", 2000, 500, True),
        ("always", 10, 9, True),
    ],
)
def test_goldens_of_the_deciders(decider: Any, tokens: int, found: int, *, split: bool) -> None:
    pairing = disagg.pairing(Disagg(decider=decider))
    assert splitting.wants_split(pairing, tokens - found, tokens, 1.0, 1.0) is split


def test_seconds_splits_only_when_the_pair_is_sooner_by_the_margin() -> None:
    pairing = disagg.pairing(Disagg(margin_s=0.5))
    assert splitting.wants_split(pairing, 1, 1, 1.0, 1.6)
    assert not splitting.wants_split(pairing, 1, 1, 1.0, 1.5)


def test_a_pool_without_roles_is_scheduled_as_ever() -> None:
    fleet = fleet_of({"a": "both", "b": "both"})
    assert pool_of(fleet).pairs is None
    decision = schedule(Ask("m", [], 10, 10), pool_of(fleet), fleet, 1.0, random.Random(1))
    assert not isinstance(decision, PairDecision)


def test_both_legs_are_chosen_before_anything_is_sent() -> None:
    fleet = fleet_of(ROLES, **NO_SOLO)
    decision = decide(fleet)
    prefill, decode = names(decision)
    assert prefill in {"p0", "p1"}
    assert decode in {"d0", "d1"}
    document = explain(decision, "r")
    assert document["legs"] == {"prefill": prefill, "decode": decode}
    assert document["split"]["decider"] == "seconds"
    assert document["split"]["solo_s"] is None
    assert document["split"]["pair_s"] > 0


def test_without_roles_that_can_hand_over_nobody_is_picked() -> None:
    for roles in ({"p0": "prefill"}, {"d0": "decode"}):
        decision = decide(fleet_of(roles, **NO_SOLO))
        assert decision.verdict is Verdict.NO_CANDIDATE


def test_a_lone_role_that_may_serve_alone_does() -> None:
    assert names(decide(fleet_of({"d0": "decode"}))) == (None, "d0")
    assert names(decide(fleet_of({"p0": "prefill"}))) == (None, "p0")


def test_a_busy_prefill_pool_makes_local_prefill_the_smaller_total() -> None:
    fleet = fleet_of({"p0": "prefill", "d0": "decode"})
    fleet.endpoints["p0"].prefill.opened(30.0, 1.0)
    assert names(decide(fleet)) == (None, "d0")
    running = fleet_of({"p0": "prefill", "d0": "decode"}, Disagg(interference=1.0), max_in_flight=256)
    running.endpoints["d0"].in_flight = 20
    running.endpoints["p0"].in_flight = 20
    running.endpoints["p0"].prefill.opened(0.5, 1.0)
    assert decide(running).prefill is running.endpoints["p0"]


def test_what_must_stay_whole_is_never_split() -> None:
    fleet = fleet_of({"p0": "prefill", "d0": "decode"}, Disagg(decider="always"))
    decision = decide(fleet, whole="n")
    assert names(decision)[0] is None
    assert decision.pair is not None
    assert decision.pair.reason == "n"
    refused = decide(fleet_of({"p0": "prefill", "d0": "decode"}, Disagg(decider="always"), **NO_SOLO), whole="n")
    assert refused.picked is None
    assert ("", "n") in refused.dropped


def test_after_two_pair_attempts_one_endpoint_alone_is_preferred() -> None:
    fleet = fleet_of(ROLES | {"p2": "prefill"}, Disagg(decider="always"))
    assert decide(fleet, tried=("p0",), pairs=1).prefill is not None
    assert decide(fleet, tried=("p0", "p1"), pairs=2).prefill is None


def test_decode_side_pushes_back() -> None:
    """A full decode pool leaves no candidate, so the request waits before prefill work is spent."""
    fleet = fleet_of(ROLES, **NO_SOLO, max_in_flight=1)
    for name in ("d0", "d1"):
        fleet.endpoints[name].in_flight = 1
    decision = decide(fleet)
    assert decision.picked is None
    assert ("d0", "saturated") in decision.dropped
    assert fleet.endpoints["p0"].in_flight == 0


def test_both_breakers_are_consulted() -> None:
    for broken, side in (("p0", 0), ("d0", 1)):
        fleet = fleet_of(ROLES, **NO_SOLO)
        for _ in range(3):
            fleet.endpoints[broken].breaker.fault(fleet.endpoints[broken].breaker.opened(1.0), 1.0)
        decision = decide(fleet)
        assert names(decision)[side] not in {None, broken}
        assert (broken, "breaker_open") in decision.dropped


def test_only_pairs_of_one_transport_and_domain_exist() -> None:
    fleet = Fleet(options.Scheduling(), options.Prefix(), options.Breaker())
    fleet.pairing = disagg.pairing(Disagg())
    members: tuple[tuple[str, Any, str], ...] = (("p0", "prefill", "a"), ("p1", "prefill", "b"), ("d0", "decode", "b"))
    for name, role, domain in members:
        endpoint = options.Endpoint(
            name=name,
            url=f"http://{name}:1",
            models=["m"],
            role=role,
            kv_domain=domain,
            solo=False,
        )
        fleet.add(endpoint, 0.0)
    assert names(decide(fleet)) == ("p1", "d0")
    fleet.remove("p1")
    assert decide(fleet).picked is None


def test_pairs_are_off_again_when_the_last_role_has_left() -> None:
    fleet = fleet_of({"a": "both", "b": "both", "p0": "prefill"}, Disagg(decider="always"))
    assert decide(fleet).prefill is not None
    fleet.remove("p0")
    decision = schedule(Ask("m", [], 10, 10), pool_of(fleet), fleet, 1.0, random.Random(1))
    assert not isinstance(decision, PairDecision)
    assert pool_of(fleet).pairs is None
    fleet.add(options.Endpoint(name="d0", url="http://d0:8000", models=["m"], role="decode"), 2.0)
    assert decide(fleet).prefill is not None


def test_a_failed_pair_rests_and_doubles_up_to_ten_times() -> None:
    fleet = fleet_of(ROLES, **NO_SOLO)
    pairing = fleet.pairing
    assert isinstance(pairing, Pairing)
    for decode in ("d0", "d1"):
        pairing.book.pair("p0", decode).failed(1.0, 60.0)
    assert names(decide(fleet))[0] == "p1"
    for decode in ("d0", "d1"):
        pairing.book.pair("p1", decode).failed(1.0, 60.0)
    assert decide(fleet).prefill is not None  # soft: with every pair at rest, they are used
    state, now, rests = PairState(), 0.0, []
    for _ in range(6):
        state.failed(now, 60.0)
        rests.append(state.quarantined_until - now)
        now = state.quarantined_until
    assert rests == [60, 120, 240, 480, 600, 600]


def test_a_pair_rests_once_for_all_that_failed_together_and_afresh_after_a_time_without_failure() -> None:
    state = PairState()
    state.failed(0.0, 60.0)
    for now in (1.0, 59.0):  # attempts that were under way
        state.failed(now, 60.0)
    assert (state.quarantined_until, state.failures) == (60.0, 3)
    state.worked()
    state.failed(119.0, 60.0)
    assert state.quarantined_until == 239.0, "in a row, whatever was completed in between: some engines fail in silence"
    state.failed(359.0, 60.0)
    assert state.quarantined_until == 419.0, "for as long as it rested it did not fail"


def test_rooms_never_repeat() -> None:
    rooms, rng = Rooms(), random.Random(7)
    seen: dict[int, float] = {}
    opened: list[int] = []
    for number in range(1_000_000):
        now = number * 0.001
        room = rooms.draw(now, rng)
        assert now - seen.get(room, -1e9) > ROOM_REST_S
        assert 0 <= room < 2**63
        seen[room] = now
        opened.append(room)
        if len(opened) > 100:
            rooms.leave(opened.pop(0), now)
    assert len(rooms) == 100


def test_round_robin_keeps_one_counter_per_role() -> None:
    chosen = Disagg(decider="always", decode_policy="round_robin", prefill_policy="round_robin")
    fleet = fleet_of(ROLES, chosen)
    counts: dict[str, int] = {}
    for _ in range(400):
        for name in names(decide(fleet)):
            counts[str(name)] = counts.get(str(name), 0) + 1
    assert counts == {"p0": 200, "p1": 200, "d0": 200, "d1": 200}


def opened(fleet: Fleet) -> tuple[Attempt, Legs]:
    decision = decide(fleet)
    pool = pool_of(fleet)
    assert decision.picked is not None
    attempt = Attempt(1, decision.picked, "first", 1.0)
    ask = Ask("m", [], 8000, 8000)
    attempt.seat = take_seat(decision, ask, pool, fleet, 1.0)
    assert pool.pairs is not None
    attempt.legs = pool.pairs.legs(decision, ask, pool, fleet, 1.0)
    assert attempt.legs is not None
    return attempt, attempt.legs


def test_legs_are_released_exactly_once_whatever_the_order_of_events() -> None:
    """Every order of: prefill answered, prefill blamed, first byte, end."""

    def run(order: tuple[str, ...], kind: ErrorKind | None) -> list[tuple[int, int, int, float]]:
        fleet = fleet_of(ROLES, **NO_SOLO)
        attempt, legs = opened(fleet)
        for event in order:
            if event == "prefilled":
                legs.prefilled(2.0, 10)
            elif event == "blame":
                legs.blame_prefill(attempt)
            elif event == "byte" and attempt.seat is not None:
                attempt.seat.first_byte(2.0)
            elif event == "end" and attempt.is_open:
                end_attempt(attempt, 3.0, kind)
        return [_counts(member) for member in fleet.endpoints.values()]

    for order in itertools.permutations(("prefilled", "blame", "byte", "end")):
        for kind in (None, ErrorKind.CONNECTION_RESET, ErrorKind.CANCELLED):
            assert run(order, kind) == [(0, 0, 0, 0.0)] * 4, order


def _counts(member: EndpointState) -> tuple[int, int, int, float]:
    return member.in_flight, member.pending_prefill_tokens, member.active_tokens, member.prefill.work_s


def test_a_blamed_prefill_is_what_the_attempt_ends_as() -> None:
    fleet = fleet_of(ROLES, **NO_SOLO)
    attempt, legs = opened(fleet)
    prefill, decode = legs.prefill, attempt.endpoint
    legs.blame_prefill(attempt)
    end_attempt(attempt, 2.0, ErrorKind.CONNECTION_RESET)
    assert attempt.endpoint is prefill
    assert legs.endpoint is decode


@pytest.mark.parametrize("decode_policy", [None, "least_busy", "turnout"])
def test_request_is_held_while_every_prefill_endpoint_has_work_queued(decode_policy: Any) -> None:
    fleet = fleet_of(ROLES, Disagg(decode_policy=decode_policy), **NO_SOLO)
    for name in ("p0", "p1"):
        fleet.endpoints[name].prefill.opened(1.0, 1.0)
    ask = Ask("m", [], 8000, 8000, may_hold=True)
    decision = schedule(ask, pool_of(fleet), fleet, 1.0, random.Random(1))
    assert (decision.verdict, decision.held) == (Verdict.HELD, "queue")
    assert ask.may_hold
    fleet.endpoints["p1"].prefill.closed(1.0, 1.0)
    bound = schedule(ask, pool_of(fleet), fleet, 1.0, random.Random(1))
    assert isinstance(bound, PairDecision)
    assert names(bound)[0] == "p1"


def held(fleet: Fleet, **fields: Any) -> bool:
    ask = Ask("m", [], 8000, 8000, may_hold=True, **fields)
    return schedule(ask, pool_of(fleet), fleet, 1.0, random.Random(1)).verdict is Verdict.HELD


def busy(fleet: Fleet, *names_: str) -> Fleet:
    for name in names_:
        fleet.endpoints[name].prefill.opened(1.0, 1.0)
    return fleet


def test_pairs_are_held_by_the_rule_of_single_endpoints() -> None:
    fleet = busy(fleet_of(ROLES, **NO_SOLO), "p0", "p1")
    assert held(fleet)
    assert not held(fleet, deadline_s=1.01), "it would be over before the next look"
    unmeasured = Fleet(options.Scheduling(seed=1, hold_samples=1), options.Prefix(), options.Breaker())
    unmeasured.pairing = disagg.pairing(Disagg())
    for name, role in ROLES.items():
        described = options.Endpoint(name=name, url=f"http://{name}:8000", models=["m"], role=role, solo=False)  # type: ignore[arg-type]
        unmeasured.add(described, 0.0)
    assert not held(busy(unmeasured, "p0", "p1")), "a queue that only the prior tells of is none"


def test_who_may_prefill_is_who_is_waited_for() -> None:
    """Where seconds decide, an idle decode endpoint is one more that may; where the prompt's size does, it is not."""
    assert not held(busy(fleet_of(ROLES), "p0", "p1"))
    assert held(busy(fleet_of(ROLES), "p0", "p1", "d0", "d1"))
    assert held(busy(fleet_of(ROLES, Disagg(decider="always")), "p0", "p1"))
