"""The order of those who wait (resilience Q5, Q6)."""

from __future__ import annotations

from collections import Counter

import pytest

from turnout.core.admission.queue import HIGH, LOW, NORMAL, FairQueue, Ticket


def queue_of(**weights: float) -> FairQueue:
    return FairQueue(weights, 5.0)


def ticket(
    tenant: str, cost: float = 100, *, now: float = 0.0, priority: int = NORMAL, anonymous: bool = False
) -> Ticket:
    return Ticket(tenant, tenant=tenant, cost=cost, now=now, expires_s=now + 30, priority=priority, anonymous=anonymous)


def served(queue: FairQueue, count: int, now: float = 0.0) -> list[str]:
    order = []
    for _ in range(count):
        head = queue.head(now)
        assert head is not None
        queue.serve(head)
        order.append(head.tenant)
    return order


def test_one_tenant_is_served_in_the_order_of_arrival() -> None:
    queue = queue_of()
    tickets = [ticket("a") for _ in range(3)]
    for each in tickets:
        queue.put(each)
    for each in tickets:
        assert queue.head(0.0) is each
        queue.serve(each)
    assert (queue.size, queue.head(0.0)) == (0, None)


def test_a_tenant_with_a_long_line_does_not_hold_up_the_others() -> None:
    queue = queue_of()
    for _ in range(50):
        queue.put(ticket("greedy"))
    for tenant in ("b", "c"):
        queue.put(ticket(tenant))
        queue.put(ticket(tenant))
    assert served(queue, 6) == ["greedy", "b", "c", "greedy", "b", "c"]


def test_shares_follow_weights_and_costs() -> None:
    queue = queue_of(heavy=3.0)
    for _ in range(80):
        queue.put(ticket("heavy", 100))
        queue.put(ticket("light", 100))
        queue.put(ticket("long", 200))
    shares = Counter(served(queue, 90))
    assert shares == {"heavy": 60, "light": 20, "long": 10}


def test_start_tags_are_those_of_start_time_fair_queueing() -> None:
    """A worked example: V is the start of the last one served, not of the clock."""
    queue = queue_of()
    queue.put(ticket("a", 30))
    queue.put(ticket("a", 30))
    queue.put(ticket("b", 10))
    assert served(queue, 2) == ["a", "b"]  # both start at 0
    queue.put(ticket("b", 10))  # b finished at 10, a's next starts at 30
    queue.put(ticket("c", 10))  # c starts at V = 0
    assert served(queue, 3) == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("now", "order"),
    [
        (4.9, ["high", "normal", "low"]),
        (9.0, ["high", "low", "normal"]),
        (9.5, ["normal", "high", "low"]),
        (10.0, ["low", "normal", "high"]),
    ],
)
def test_classes_come_first_and_rise_with_waiting(now: float, order: list[str]) -> None:
    queue = queue_of()
    queue.put(ticket("low", now=0.0, priority=LOW))
    queue.put(ticket("normal", now=4.5))
    queue.put(ticket("high", now=9.0, priority=HIGH))
    assert served(queue, 3, now) == order, "with equal starts the earlier arrival wins"


def test_anonymous_requests_yield_to_named_ones_of_their_class() -> None:
    queue = queue_of()
    queue.put(ticket("", anonymous=True))
    queue.put(ticket("named"))
    queue.put(ticket("poor", priority=LOW))
    assert served(queue, 3) == ["named", "", "poor"]


def test_leaving_works_from_anywhere_and_costs_the_tenant_nothing() -> None:
    queue = queue_of()
    tickets = [ticket("a") for _ in range(5)]
    for each in tickets:
        queue.put(each)
    for each in (tickets[2], tickets[0], tickets[4]):
        assert queue.leave(each)
        assert not queue.leave(each)
    queue.put(ticket("b"))
    assert queue.head(0.0) is tickets[1]
    assert served(queue, 3) == ["a", "b", "a"]


def test_waits_and_ahead_count_the_class_and_those_above() -> None:
    queue = queue_of()
    for priority in (HIGH, NORMAL, NORMAL, LOW):
        queue.put(ticket("a", priority=priority))
    assert [queue.ahead(priority) for priority in (HIGH, NORMAL, LOW)] == [1, 3, 4]
    queue = queue_of()
    queue.put(ticket("a", priority=LOW))
    assert [queue.waits(priority, 0.0) for priority in (HIGH, NORMAL, LOW)] == [False, False, True]
    assert queue.waits(NORMAL, 5.0)


def test_those_whose_time_is_over_are_named() -> None:
    queue = queue_of()
    early, late = ticket("a", now=0.0), ticket("a", now=1.0)
    queue.put(early)
    queue.put(late)
    assert queue.expired(29.9) == []
    assert queue.expired(30.0) == [early]
    assert set(queue.expired(31.0)) == {early, late}


@pytest.mark.parametrize("ending", ["served", "left"])
def test_no_tenant_is_remembered_after_the_rush(ending: str) -> None:
    queue = queue_of()
    tickets = [ticket(f"t{number}") for number in range(1000)]
    for each in tickets:
        queue.put(each)
    for each in tickets:
        (queue.serve if ending == "served" else queue.leave)(each)
    assert (queue.size, len(queue._tenants)) == (0, 0)
