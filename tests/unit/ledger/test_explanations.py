"""Decisions reach the rows of their calls: as many as the rate allows, rendered by whoever writes."""

from collections.abc import Callable
from typing import Any

import pytest

from turnout.core.facts import CallFact
from turnout.ledger import entry, messages
from turnout.ledger.explanations import Explanations

Make = Callable[..., Any]


class World:
    """A ring of decisions and a clock that the test moves."""

    def __init__(self, per_s: int) -> None:
        self.now = 100.0
        self.ring: list[tuple[str, int]] = []
        self.rendered: list[str] = []
        self.explanations = Explanations(lambda: list(self.ring), self.render, per_s=per_s, monotonic=lambda: self.now)

    def render(self, call_id: str, decision: int) -> bytes:
        self.rendered.append(call_id)
        return b'{"n":%d}' % (100 // decision)

    def joined(self, *facts: CallFact) -> list[CallFact]:
        """Give facts their explanations on the way that frames of two of them take."""
        frames = entry.frames([entry.of(fact) for fact in facts], 2)
        return messages.FACTS.joined(frame.payload for frame in self.explanations.joined(frames))

    def stored(self, *facts: CallFact) -> None:
        self.explanations.stored(entry.frames([entry.of(fact) for fact in facts], 2))

    def decide(self, *numbers: int) -> None:
        self.ring += [(f"call-{number}", number) for number in numbers]
        self.ring = self.ring[-16:]


def test_a_call_is_stored_with_its_explanation_once(call: Make) -> None:
    world = World(per_s=10)
    world.decide(1, 2)
    world.explanations.look()
    facts = [call(call_id="call-2"), call(call_id="call-9"), call(call_id="call-1", outcome="")]
    joined = world.joined(*facts)
    assert [fact.decision for fact in joined] == [b'{"n":50}', None, None]
    world.stored(*facts)
    assert world.joined(facts[0])[0].decision is None


def test_what_cannot_be_read_is_passed_on_as_it_is() -> None:
    world = World(per_s=10)
    world.decide(1)
    world.explanations.look()
    garbage = entry.Frame(b"\x91\x93\x01", 1, ("call-1",))
    assert world.explanations.joined([garbage]) == [garbage]


def test_an_explanation_waits_for_its_call_while_the_database_is_down(call: Make) -> None:
    world = World(per_s=10)
    world.decide(1)
    for _ in range(3):
        world.explanations.look()
    assert world.rendered == ["call-1"]
    for _ in range(2):
        assert world.joined(call(call_id="call-1"))[0].decision == b'{"n":100}'


def test_more_than_the_rate_are_sampled_evenly() -> None:
    world = World(per_s=4)
    world.decide(*range(1, 9))
    world.explanations.look()
    assert world.rendered == ["call-8", "call-6", "call-4", "call-2"]
    world.decide(*range(9, 13))
    world.explanations.look()
    assert len(world.rendered) == 4
    world.now += 0.5
    world.decide(*range(13, 17))
    world.explanations.look()
    assert world.rendered[4:] == ["call-16", "call-14"]


def test_a_ring_that_turned_over_is_looked_at_as_a_whole() -> None:
    world = World(per_s=100)
    world.decide(1)
    world.explanations.look()
    world.decide(*range(2, 40))
    world.explanations.look()
    assert world.rendered == ["call-1", *(f"call-{number}" for number in range(39, 23, -1))]


def test_explanations_of_calls_that_never_end_are_bounded(call: Make) -> None:
    world = World(per_s=1_000)
    for number in range(1, 1_200):
        world.now += 1.0
        world.decide(number)
        world.explanations.look()
    facts = [call(call_id=f"call-{number}") for number in range(1, 1_200)]
    kept = [fact.call_id for fact in world.joined(*facts) if fact.decision is not None]
    assert kept == [f"call-{number}" for number in range(176, 1_200)]


def test_a_bug_in_an_explanation_is_counted_and_stops_nothing(call: Make) -> None:
    world = World(per_s=10)
    world.decide(0, 5)
    world.explanations.look()
    assert world.explanations.failed == 1
    assert world.joined(call(call_id="call-5"))[0].decision == b'{"n":20}'


@pytest.mark.parametrize("per_s", [1, 3])
def test_a_quiet_time_saves_at_most_one_second_of_rate(per_s: int) -> None:
    world = World(per_s=per_s)
    world.now += 3_600.0
    world.decide(*range(1, 17))
    world.explanations.look()
    assert len(world.rendered) == per_s
