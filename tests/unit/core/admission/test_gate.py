"""Verdicts at the door (resilience §9), each rule as a table or a transcript."""

from __future__ import annotations

from typing import Any

import pytest

from turnout.core.admission.gate import Applicant, Entry, Gate, Reject, Room, Verdict, request_cost
from turnout.core.admission.limits import DrainRate, Shares, retry_after_s
from turnout.core.admission.queue import HIGH, LOW
from turnout.core.errors import ENDINGS, Outcome
from turnout.core.options import Admission

NOW = 100.0
ROOM = Room(in_flight=3, capacity=8)
FULL = Room(routable=(False,), in_flight=8, capacity=8)


def applicant(tenant: str = "a", **facts: Any) -> Applicant:
    return Applicant(**{"tenant": tenant, "cost": 100.0, "deadline_s": NOW + 600, **facts})


def gate_of(**settings: Any) -> Gate:
    return Gate(Admission(**settings))


def waiting(gate: Gate, count: int, tenant: str = "a", **facts: Any) -> None:
    for _ in range(count):
        gate.enter(applicant(tenant, **facts), None, NOW)


def shown(verdict: Verdict) -> str:
    return verdict.value if isinstance(verdict, Entry) else f"{verdict.outcome} {verdict.retry_after_s}"


def test_free_places_admit_at_once() -> None:
    assert gate_of().verdict(applicant(), ROOM, NOW) is Entry.ADMIT


def test_a_full_pool_lets_wait() -> None:
    assert gate_of().verdict(applicant(), FULL, NOW) is Entry.QUEUE


@pytest.mark.parametrize(("priority", "expected"), [(HIGH, "admit"), (1, "queue"), (LOW, "queue")])
def test_nobody_overtakes_his_own_class(priority: int, expected: str) -> None:
    gate = gate_of()
    waiting(gate, 1)
    assert shown(gate.verdict(applicant(priority=priority), ROOM, NOW)) == expected


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (Room(draining=True), "draining 15"),
        (Room(fits=False), "unservable None"),
        (Room(routable=(False,), anybody=False), "no_endpoint 5"),
        (Room(routable=(False,), anybody=False, returns_in_s=3), "no_endpoint 3"),
    ],
)
def test_what_cannot_be_served_does_not_wait(room: Room, expected: str) -> None:
    assert shown(gate_of().verdict(applicant(), room, NOW)) == expected


def test_an_empty_pool_lets_wait_when_told_so() -> None:
    gate = gate_of(wait_for_endpoint=True)
    assert gate.verdict(applicant(), Room(routable=(False,), anybody=False), NOW) is Entry.QUEUE


def test_full_is_503_greedy_is_429() -> None:
    gate = gate_of(queue_max=4, tenant_max_queued=2)
    waiting(gate, 2, "greedy")
    refused = gate.verdict(applicant("greedy"), FULL, NOW)
    assert isinstance(refused, Reject)
    assert (refused.outcome, ENDINGS[refused.outcome].status) == (Outcome.PRINCIPAL_OVER_SHARE, 429)
    waiting(gate, 1, "b")
    assert gate.verdict(applicant("b"), FULL, NOW) is Entry.QUEUE
    waiting(gate, 1, "c")
    refused = gate.verdict(applicant("c"), FULL, NOW)
    assert isinstance(refused, Reject)
    assert (refused.outcome, ENDINGS[refused.outcome].status) == (Outcome.QUEUE_FULL, 503)
    # Over its share while the system is full, too: the client's own doing comes first.
    assert shown(gate.verdict(applicant("greedy"), FULL, NOW)).startswith("principal_over_share")


def test_every_refusal_has_retry_after() -> None:
    full = gate_of(queue_max=1)
    waiting(full, 1)
    slow = gate_of()
    slow.drained.gave_back(5, NOW)
    waiting(slow, 9)
    greedy = gate_of(tenant_max_in_flight=1)
    greedy.held.take("a")
    refusals = [
        full.verdict(applicant("b"), FULL, NOW),
        slow.verdict(applicant(deadline_s=NOW + 1), FULL, NOW),
        greedy.verdict(applicant(), ROOM, NOW),
        gate_of().verdict(applicant(), Room(draining=True), NOW),
        gate_of().verdict(applicant(), Room(routable=(False,), anybody=False), NOW),
    ]
    for refusal in refusals:
        assert isinstance(refusal, Reject)
        assert isinstance(refusal.retry_after_s, int)
        assert 1 <= refusal.retry_after_s <= 120


def test_q10_a_tenant_over_its_running_requests_is_told_so() -> None:
    gate = gate_of(tenant_max_in_flight=2)
    gate.held.take("a")
    assert gate.verdict(applicant(), ROOM, NOW) is Entry.ADMIT
    gate.held.take("a")
    assert shown(gate.verdict(applicant(), ROOM, NOW)) == "principal_over_share 2"
    assert gate.verdict(applicant("b"), ROOM, NOW) is Entry.ADMIT


def test_q10_anonymous_requests_leave_one_place_and_one_queue_slot() -> None:
    gate = gate_of(queue_max=4)
    room = Room(in_flight=2, capacity=3)
    anonymous = applicant("", anonymous=True)
    gate.anonymous = 1
    assert gate.verdict(anonymous, room, NOW) is Entry.ADMIT
    gate.anonymous = 2
    assert gate.verdict(anonymous, room, NOW) is Entry.QUEUE
    assert gate.verdict(applicant("named"), room, NOW) is Entry.ADMIT
    waiting(gate, 3, "", anonymous=True)
    assert shown(gate.verdict(anonymous, FULL, NOW)).startswith("principal_over_share")
    assert gate.verdict(applicant("named"), FULL, NOW) is Entry.QUEUE


def test_two_tenants_cannot_fill_the_queue_for_a_third() -> None:
    gate = gate_of(queue_max=12)
    for tenant in ("a", "b", "c"):
        while gate.verdict(applicant(tenant), FULL, NOW) is Entry.QUEUE and gate.queue.size < 12:
            waiting(gate, 1, tenant)
            if tenant == "a" and gate._queued.of("a") == 6:
                break
    assert [gate._queued.of(tenant) for tenant in "abc"] == [6, 4, 2]
    assert shown(gate.verdict(applicant("a"), FULL, NOW)).startswith("queue_full")


def test_q10_one_place_is_still_a_place_for_anonymous_requests() -> None:
    assert gate_of().verdict(applicant("", anonymous=True), Room(capacity=1), NOW) is Entry.ADMIT


def test_q4_bodies_are_bounded_too() -> None:
    gate = gate_of(queue_bodies_max_bytes=1000)
    waiting(gate, 1, body_bytes=600)
    assert gate.verdict(applicant("b", body_bytes=400), FULL, NOW) is Entry.QUEUE
    assert shown(gate.verdict(applicant("b", body_bytes=401), FULL, NOW)).startswith("queue_full")


def test_decode_side_pushes_back() -> None:
    """A split request waits before any prefill work is spent, and needs a slot in both roles."""
    gate = gate_of(queue_max=2)
    split = applicant(roles=("prefill", "decode"))
    assert gate.verdict(split, Room(routable=(True, False)), NOW) is Entry.QUEUE
    gate.enter(applicant(roles=("decode",)), None, NOW)
    gate.enter(split, None, NOW)
    assert (gate.queued("prefill"), gate.queued("decode")) == (1, 2)
    assert shown(gate.verdict(split, Room(routable=(True, False)), NOW)).startswith("queue_full")
    assert gate.verdict(applicant(roles=("prefill",)), Room(routable=(False,)), NOW) is Entry.QUEUE


def test_q7_what_cannot_be_served_in_time_is_shed_on_arrival() -> None:
    gate = gate_of(queue_wait_s=30)
    gate.drained.gave_back(30, NOW)  # one per second
    waiting(gate, 29)
    assert gate.verdict(applicant("b"), FULL, NOW) is Entry.QUEUE
    waiting(gate, 1)
    assert shown(gate.verdict(applicant("b"), FULL, NOW)) == "shed 31"
    assert shown(gate.verdict(applicant("b", deadline_s=NOW + 5, priority=HIGH), FULL, NOW)) == "queue"


def test_q8_the_drain_rate_is_known_from_five_on_and_forgets() -> None:
    rate = DrainRate()
    rate.gave_back(4, 10.2)
    assert rate.per_s(10.5) is None
    rate.gave_back(2, 10.9)
    assert rate.per_s(11.0) == pytest.approx(6 / 30)
    rate.gave_back(9, 30.0)
    assert rate.per_s(39.9) == pytest.approx(15 / 30)
    assert rate.per_s(40.0) == pytest.approx(9 / 30)
    assert rate.per_s(60.0) is None


@pytest.mark.parametrize(
    ("ahead", "rate", "pending", "expected"),
    [
        (0, 2.0, 0, 1),
        (9, 2.0, 0, 5),
        (9, 3.0, 0, 4),
        (1000, 1.0, 0, 120),
        (5, None, 8, 2),
        (5, None, 10, 6),
        (5, None, 100, 120),
    ],
)
def test_q8_retry_after(ahead: int, rate: float | None, pending: int, expected: int) -> None:
    assert retry_after_s(ahead, rate, pending, 8) == expected


def test_leaving_and_serving_give_every_slot_back_once() -> None:
    gate = gate_of()
    tickets = [gate.enter(applicant(f"t{n % 3}", body_bytes=10), n, NOW) for n in range(30)]
    assert (gate.queue.size, gate.queued(), gate.queued_bytes) == (30, 30, 300)
    for ticket in tickets[::2]:
        assert gate.leave(ticket)
        assert not gate.leave(ticket)
    while (head := gate.queue.head(NOW)) is not None:
        gate.serve(head)
    assert (gate.queue.size, gate.queued(), gate.queued_bytes, len(gate._queued)) == (0, 0, 0, 0)


def test_a_ticket_ends_with_its_wait_or_its_deadline() -> None:
    gate = gate_of(queue_wait_s=30)
    assert gate.enter(applicant(), None, NOW).expires_s == NOW + 30
    assert gate.enter(applicant(deadline_s=NOW + 4), None, NOW).expires_s == NOW + 4


def test_a_share_is_never_given_back_twice() -> None:
    shares = Shares()
    shares.take("a")
    shares.give("a")
    with pytest.raises(KeyError):
        shares.give("a")
    assert len(shares) == 0


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 612), (0, 612), (50, 150), (10_000, 4196)])
def test_q5_cost_is_the_prompt_and_what_may_be_written(max_tokens: int | None, expected: float) -> None:
    assert request_cost(100, max_tokens) == expected
