"""Whatever happens in whatever order: slots return, nobody is lost or served twice, and shares stay fair."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.core.admission.gate import Applicant, Gate
from turnout.core.admission.queue import FairQueue, Ticket
from turnout.core.options import Admission
from turnout.core.recovery.prefix_match import PrefixMatch, Progress, merged

TENANTS = st.sampled_from(["a", "b", "c", ""])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), TENANTS, st.integers(0, 2), st.integers(1, 500)),
        st.tuples(st.just("leave"), st.integers(0, 40), st.just(0), st.just(0)),
        st.tuples(st.just("serve"), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("wait"), st.just(0), st.just(0), st.integers(1, 20)),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_permits_return_and_nobody_is_lost(steps: list[tuple[str, Any, int, int]]) -> None:
    gate = Gate(Admission())
    now = 0.0
    inside: list[Ticket] = []
    ended: set[int] = set()
    for number, (verb, who, priority, amount) in enumerate(steps):
        if verb == "enter":
            applicant = Applicant(
                tenant=who,
                cost=float(amount),
                deadline_s=now + 600,
                anonymous=who == "",
                priority=priority,
                body_bytes=7,
            )
            inside.append(gate.enter(applicant, number, now))
        elif verb == "leave" and inside:
            ticket = inside.pop(who % len(inside))
            assert gate.leave(ticket)
            ended.add(ticket.owner)
        elif verb == "serve":
            head = gate.queue.head(now)
            assert (head is None) == (not inside)
            if head is not None:
                # No ticket of the same tenant and class came before it.
                assert all(
                    other.serial > head.serial
                    for other in inside
                    if other is not head and (other.tenant, other.priority) == (head.tenant, head.priority)
                )
                gate.serve(head)
                inside.remove(head)
                assert head.owner not in ended
                ended.add(head.owner)
        elif verb == "wait":
            now += amount
        assert gate.queue.size == len(inside)
        assert gate.queued_bytes == 7 * len(inside)
        assert set(gate.queue.tickets()) == set(inside)
    for ticket in inside:
        assert gate.leave(ticket)
    assert (gate.queue.size, gate.queued(), gate.queued_bytes, len(gate._queued)) == (0, 0, 0, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from([1.0, 2.0, 4.0]), min_size=2),
    st.lists(st.integers(10, 300), min_size=4, max_size=4),
    st.integers(20, 120),
)
def test_backlogged_tenants_get_work_by_their_weights(weights: dict[str, float], costs: list[int], rounds: int) -> None:
    """The known bound of start-time fair queueing: normalised service differs by at most one request of each."""
    queue = FairQueue(weights, 1e9)
    cost = dict(zip("abcd", costs, strict=True))
    for tenant in weights:
        for _ in range(rounds):
            queue.put(Ticket(None, tenant=tenant, cost=cost[tenant], now=0.0, expires_s=1.0))
    served = dict.fromkeys(weights, 0.0)
    for _ in range(rounds):
        head = queue.head(0.0)
        assert head is not None
        queue.serve(head)
        served[head.tenant] += head.cost / weights[head.tenant]
        for one, one_weight in weights.items():
            for other, other_weight in weights.items():
                bound = cost[one] / one_weight + cost[other] / other_weight
                assert abs(served[one] - served[other]) <= bound + 1e-6


SPANS = st.lists(st.tuples(st.sampled_from(["reasoning", "content"]), st.text("ab€", max_size=4)), max_size=8)


@settings(max_examples=100, deadline=None)
@given(SPANS, SPANS, st.data())
def test_a_joined_answer_is_the_second_one_and_says_nothing_twice(
    whole: list[tuple[str, str]], other: list[tuple[str, str]], data: st.DataObject
) -> None:
    runs = merged(whole)
    characters = [(channel, character) for channel, text in runs for character in text]
    cut = data.draw(st.integers(0, len(characters)))
    sent = characters[:cut]
    match = PrefixMatch(sent)
    shown = list(sent)
    for channel, text in whole:
        step = match.feed(channel, text)
        assert step.progress is not Progress.MISMATCH
        shown += [(channel, character) for character in step.text]
    assert shown == characters
    assert match.ended() is Progress.RELAY
    # Against an answer that differs it gives up exactly when the sent part is no prefix of it.
    second = [(channel, character) for channel, text in merged(other) for character in text]
    match = PrefixMatch(sent)
    steps = [match.feed(channel, text).progress for channel, text in other]
    is_prefix = second[: len(sent)] == sent
    assert (Progress.MISMATCH in [*steps, match.ended()]) == (not is_prefix)


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["put", "aside", "move", "leave", "serve", "wait"]),
        st.integers(0, 20),
        st.sampled_from(["a", "b", "c"]),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(MOVES)
def test_who_stands_aside_is_neither_lost_nor_in_the_way(steps: list[tuple[str, int, str]]) -> None:
    queue = FairQueue({}, 5.0)
    waiting: list[Ticket] = []
    now = 0.0
    for step, number, tenant in steps:
        chosen = waiting[number % len(waiting)] if waiting else None
        if step == "put":
            waiting.append(Ticket(None, tenant=tenant, cost=1.0 + number, now=now, expires_s=1e9, priority=number % 3))
            queue.put(waiting[-1])
        elif step == "wait":
            now += number / 4
        elif chosen is not None and step == "leave":
            assert queue.leave(chosen)
            assert not queue.leave(chosen)
            waiting.remove(chosen)
        elif chosen is not None and step == "serve":
            queue.serve(chosen)
            waiting.remove(chosen)
        elif chosen is not None and step == "aside" and not chosen.aside:
            queue.step_aside(chosen, now + 0.5 + number / 4)
        elif chosen is not None and step == "move" and not chosen.aside:
            queue.move(chosen, float(number))
        head = queue.head(now)
        free = [ticket for ticket in waiting if not ticket.aside]
        assert all(ticket.aside_s > now for ticket in waiting if ticket.aside)
        assert (head is None) == (not free)
        assert head is None or head in free
        assert queue.size == len(waiting) == queue.ahead(2)
        assert {id(ticket) for ticket in queue.tickets()} == {id(ticket) for ticket in waiting}
        assert queue.waits(2, now) == bool(free)
        lane = [ticket for ticket in free if head and (ticket.tenant, ticket.priority) == (head.tenant, head.priority)]
        assert head is None or head is min(lane, key=lambda ticket: (ticket.queued_s + ticket.behind_s, ticket.serial))
