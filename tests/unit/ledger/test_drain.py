"""Which way each call takes: straight to the database, or through the spool and later, always in order."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from turnout.core.facts import CallFact
from turnout.ledger import entry, messages
from turnout.ledger.drain import Drain
from turnout.ledger.sink import SinkDownError, Written
from turnout.ledger.spool import Spool

Make = Callable[..., Any]
BATCH = 4


class Sink:
    """Keeps calls in a list while `up`."""

    def __init__(self) -> None:
        self.up = True
        self.stored: list[CallFact] = []
        self.batches: list[int] = []
        self.tries = 0
        self.on_write: Callable[[], None] = lambda: None

    def write(self, frames: Sequence[bytes]) -> Written:
        facts = messages.FACTS.joined(frames)
        self.on_write()
        self.tries += 1
        if not self.up:
            raise SinkDownError("locked", "database is locked")
        self.stored += facts
        self.batches.append(len(facts))
        return Written(calls=len(facts), commits=1)

    def prune(self) -> bool:
        if not self.up:
            raise SinkDownError("full", "disk full")
        return True

    def close(self) -> None:
        self.up = False


class World:
    """A drain with everything around it, on a clock that the test moves."""

    def __init__(self, database: Path, events: Any, spool_bytes: int = 2**20, direct_max: int = 0) -> None:
        self.now = 100.0
        self.queue: deque[entry.Entry] = deque()
        self.sink = Sink()
        self.spool = Spool(database, name="1", max_bytes=spool_bytes, frame_calls=BATCH)
        self.drain = Drain(
            self.queue,
            self.spool,
            batch_max=BATCH,
            interval_s=0.1,
            monotonic=lambda: self.now,
            on_event=events,
            direct_max=direct_max,
        )
        self.drain.sink = self.sink

    def pass_time(self) -> None:
        self.now += 0.02

    def rounds_until_settled(self) -> int:
        for n in range(1, 200):
            self.now += self.drain.round()
            if self.drain.settled:
                return n
        raise AssertionError("never settled")


@pytest.fixture
def world(database: Path, events: Any) -> World:
    return World(database, events)


def test_a_batch_goes_straight_to_the_database(world: World, call: Make) -> None:
    world.queue.extend(entry.of(call(n)) for n in range(BATCH))
    assert world.drain.round() == pytest.approx(0.1)
    assert world.sink.batches == [BATCH]
    assert world.drain.settled


def test_more_than_a_batch_goes_to_the_spool_and_is_stored_when_it_is_quiet(world: World, call: Make) -> None:
    world.queue.extend(entry.of(call(n)) for n in range(10))
    world.drain.round()
    assert (world.sink.batches, len(world.queue), world.spool.empty) == ([], 0, False)
    assert world.rounds_until_settled() == 3
    assert world.sink.stored == [call(n) for n in range(10)]
    assert world.drain.replayed == 10


def test_new_calls_queue_behind_the_spool(world: World, call: Make) -> None:
    world.queue.extend(entry.of(call(n)) for n in range(6))
    world.drain.round()
    world.queue.append(entry.of(call(6)))
    world.drain.round()
    world.rounds_until_settled()
    assert world.sink.stored == [call(n) for n in range(7)]


def test_a_burst_is_not_slowed_by_the_replay_of_an_earlier_one(world: World, call: Make) -> None:
    for start in (0, 10, 20):
        world.queue.extend(entry.of(call(n)) for n in range(start, start + 10))
        world.drain.round()
    assert world.sink.tries == 0


def test_steady_traffic_does_not_keep_the_spool_from_emptying(world: World, call: Make) -> None:
    world.queue.extend(entry.of(call(n)) for n in range(50))
    world.drain.round()
    for n in range(50, 100):
        world.queue.append(entry.of(call(n)))
        world.now += world.drain.round()
    assert world.spool.empty
    assert world.sink.stored == [call(n) for n in range(100)]


def test_a_burst_is_made_up_for_while_as_much_comes_in_as_could_go_straight(
    database: Path, events: Any, call: Make
) -> None:
    """Two batches per interval, which the database takes in 40 % of it: the spool of a hiccup must not stay for ever."""
    world = World(database, events, direct_max=3 * BATCH)
    world.sink.on_write = world.pass_time
    calls = (entry.of(call(n)) for n in range(1_000))
    world.queue.extend(islice(calls, 10 * BATCH))
    arrived = world.now
    for _ in range(60):
        world.now += world.drain.round()
        world.queue.extend(islice(calls, int((world.now - arrived) / 0.1 * 2 * BATCH)))
        arrived = world.now
        if world.spool.empty:
            break
    assert world.spool.empty
    assert world.sink.batches[-1] <= BATCH


def test_a_spool_half_full_is_replayed_under_any_traffic(database: Path, events: Any, call: Make) -> None:
    world = World(database, events, spool_bytes=20_000)
    for start in range(0, 100, 10):
        world.queue.extend(entry.of(call(n)) for n in range(start, start + 10))
        world.now += world.drain.round()
    assert world.sink.tries > 0


def test_before_the_database_is_open_calls_wait_in_the_spool(world: World, call: Make) -> None:
    world.drain.sink = None
    world.queue.append(entry.of(call(0)))
    world.drain.round()
    assert not world.queue
    world.drain.sink = world.sink
    world.rounds_until_settled()
    assert world.sink.stored == [call(0)]


def test_a_database_that_fails_is_reported_once_and_asked_less_and_less(world: World, call: Make, events: Any) -> None:
    world.sink.up = False
    for n in range(600):
        world.queue.append(entry.of(call(n)))
        world.now += world.drain.round()
    assert events.names == ["ledger_down"]
    # 0.1 + 0.2 + … + 5 s, then every 5 s: about 6 tries to the cap and 10 more in the rest of the minute.
    assert 15 <= world.sink.tries <= 18
    assert world.drain.write_errors == {"locked": world.sink.tries}
    world.sink.up = True
    world.now += 5.0
    world.rounds_until_settled()
    assert events.names == ["ledger_down", "ledger_up"]
    assert world.sink.stored == [call(n) for n in range(600)]


def test_finish_stores_everything_within_its_deadline(world: World, call: Make) -> None:
    world.queue.extend(entry.of(call(n)) for n in range(10))
    world.drain.round()
    world.queue.extend(entry.of(call(n)) for n in range(10, 15))
    world.drain.finish(world.now + 1)
    assert world.sink.stored == [call(n) for n in range(15)]


def test_finish_leaves_the_rest_in_the_spool_after_its_deadline(world: World, call: Make) -> None:
    world.queue.extend(entry.of(call(n)) for n in range(10))
    world.drain.finish(world.now)
    assert world.sink.stored == []
    assert not world.queue
    assert messages.FACTS.joined(frame.payload for frame in world.spool.read()) == [call(n) for n in range(BATCH)]


def test_pruning_a_database_that_fails_is_a_failure_like_any_other(world: World, events: Any) -> None:
    assert world.drain.prune() is True
    world.sink.up = False
    assert world.drain.prune() is False
    assert events.names == ["ledger_down"]
    assert world.drain.down
