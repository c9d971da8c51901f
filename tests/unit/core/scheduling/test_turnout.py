"""The default policy, its held requests and its cold gate (scheduling §5.2)."""

import json
import random

import pytest

from turnout.core import options
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.precision import Mode
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.fleet.report import Report
from turnout.core.fleet.seat import Seat
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision
from turnout.core.scheduling.explain import explain, recompute
from turnout.core.scheduling.holding import HeldQueue
from turnout.core.scheduling.pipeline import schedule
from turnout.core.scheduling.seats import take_seat
from turnout.core.scheduling.types import Verdict

BLOCK = 512


def chain(start: int, length: int) -> list[int]:
    return list(range(start * 1_000_000 + 1, start * 1_000_000 + 1 + length))


class World:
    def __init__(self, *names: str, cache_tokens: int | None = None, **scheduling: object) -> None:
        given = {"policy": "turnout", "gate_regret": 1.0, "hold_samples": 0, **scheduling}
        self.fleet = Fleet(options.Scheduling(**given), options.Prefix(), options.Breaker())  # type: ignore[arg-type]
        self.rng = random.Random(1)
        for name in names:
            self.fleet.add(
                options.Endpoint(name=name, url="http://127.0.0.1:1", models=["m"], cache_tokens=cache_tokens), 0.0
            )

    def __getitem__(self, name: str) -> EndpointState:
        return self.fleet.endpoints[name]

    @property
    def pool(self) -> Pool:
        pool = self.fleet.pool("m")
        assert pool is not None
        return pool

    def ask(self, keys: list[int], **more: object) -> Ask:
        given = {"tokens": len(keys) * BLOCK, "may_hold": True, "block_tokens": float(BLOCK), **more}
        return Ask("m", keys, estimate_floor=1, **given)  # type: ignore[arg-type]

    def decide(self, ask: Ask, now: float = 0.0) -> Decision:
        return schedule(ask, self.pool, self.fleet, now, self.rng)

    def seat(self, ask: Ask, now: float = 0.0) -> Seat:
        return take_seat(self.decide(ask, now), ask, self.pool, self.fleet, now)

    def serve(self, ask: Ask, now: float, seconds: float = 0.01) -> str:
        seat = self.seat(ask, now)
        seat.first_byte(now + seconds)
        seat.ended(now + seconds, failed=False)
        return seat.endpoint.name


def test_conversation_returns_although_another_is_idle() -> None:
    world = World("a", "b")
    first = world.seat(world.ask(chain(1, 20)))
    first.first_byte(0.5)
    decision = world.decide(world.ask(chain(1, 24)), 1.0)
    assert decision.picked is first.endpoint


def test_queue_outweighs_affinity_once_waiting_costs_more_than_prefill() -> None:
    world = World("a", "b")
    owner = world.seat(world.ask(chain(1, 4)))
    owner.first_byte(0.1)
    busy = world.seat(Ask("m", [], 40_000, 1, block_tokens=512.0, tried=()), 1.0)
    if busy.endpoint is not owner.endpoint:
        busy.ended(1.0, failed=False)
        owner.endpoint.prefill.opened(5.0, 1.0)
    decision = world.decide(world.ask(chain(1, 5)), 1.0)
    assert decision.picked is not owner.endpoint


def test_totals_are_the_formula_over_the_printed_inputs() -> None:
    world = World("a", "b", "c", cache_tokens=20 * BLOCK)
    for number in range(12):
        world.seat(world.ask(chain(number % 5, 7 + number % 3), may_hold=False), 0.1 * number)
    world["b"].observed(
        world["b"].sent(1.2), Report(running=3, waiting=2, kv_usage_ratio=0.95, kv_capacity_tokens=9000), 5.0, 900.0
    )
    decision = world.decide(world.ask(chain(3, 9), may_hold=False), 1.3)
    document = json.loads(json.dumps(explain(decision, "r")))
    totals = [candidate["total"] for candidate in document["candidates"]]
    assert recompute(document) == (document["picked"], totals)
    for candidate in document["candidates"]:
        assert sum(candidate["terms"].values()) == pytest.approx(candidate["total"], rel=1e-12)
        assert candidate["unit"] == "s"
    assert any(candidate["terms"]["evict_s"] > 0 for candidate in document["candidates"])
    assert any(candidate["terms"]["guard_s"] > 0 for candidate in document["candidates"])


def test_work_already_done_is_credited() -> None:
    world = World("a")
    world.seat(world.ask(chain(1, 100), may_hold=False))
    work = 51_200 / 8000
    prefill = world["a"].prefill
    assert prefill.queue_s(0.0) == pytest.approx(work)
    assert prefill.queue_s(4.0) == pytest.approx(work - 4.0)
    # A wrong estimate never hides what is still open.
    assert prefill.queue_s(100.0) == pytest.approx(0.1 * work)


def test_answer_that_comes_as_a_whole_queues_prefill_only_as_long_as_it_takes() -> None:
    world = World("a")
    seat = world.seat(world.ask(chain(1, 100), may_hold=False, streams=False))
    prefill = world["a"].prefill
    work = 51_200 / 8000
    assert prefill.queue_s(1.0) == pytest.approx(work - 1.0)
    assert prefill.queue_s(7.0) == 0.0
    assert world.decide(world.ask(chain(2, 10)), 7.0).verdict is Verdict.PICKED
    seat.first_byte(60.0)
    seat.ended(60.0, failed=False, tokens_out=500)
    assert (prefill.work_s, prefill.prefilling, prefill.samples) == (0.0, 0, 0)


def test_equal_endpoints_take_turns() -> None:
    world = World("a", "b", "c", "d")
    seconds = 3 * BLOCK / 8000 + 0.02
    served = [world.serve(world.ask(chain(number, 3)), 10.0 * number, seconds) for number in range(4)]
    # Who was given work a short time ago comes later; among the others it is the rotation's turn.
    assert sorted(served) == [
        "a",
        "b",
        "c",
        "d",
    ]


def test_uniform_load_not_worse_than_least_busy() -> None:
    """T69: without reuse the default spreads like least_busy: no endpoint has two more in flight than another."""
    world = World("a", "b", "c", "d", hold_prefill_s=0.0)
    seats: list[Seat] = []
    for number in range(400):
        seats.append(world.seat(world.ask([], tokens=1000), 0.01 * number))
        if len(seats) > 40:
            seat = seats.pop(0)
            seat.first_byte(0.01 * number)
            seat.ended(0.01 * number, failed=False)
        counts = [member.in_flight for member in world.pool.members]
        assert max(counts) - min(counts) <= 2


def test_affinity_yields_and_survives() -> None:
    """T59: a backlogged owner is left, and once its backlog is gone its conversations come back to it."""
    world = World("a", "b", hold_prefill_s=0.0)
    owner = world.seat(world.ask(chain(1, 8)))
    owner.first_byte(0.1)
    owner.ended(0.2, failed=False)
    backlog = owner.endpoint.prefill
    backlog.opened(20.0, 1.0)
    elsewhere = world.decide(world.ask(chain(1, 9)), 1.0)
    assert elsewhere.picked is not owner.endpoint
    backlog.closed(20.0, 2.0)
    assert world.decide(world.ask(chain(1, 9)), 2.0).picked is owner.endpoint


# -- held requests ----------------------------------------------------------------------------------------------------


def test_request_is_held_while_everyone_has_prefill_queued() -> None:
    world = World("a", "b")
    seats = [world.seat(world.ask(chain(number, 20))) for number in range(2)]
    decision = world.decide(world.ask(chain(7, 20)), 0.1)
    assert (decision.verdict, decision.held, decision.picked) == (Verdict.HELD, "queue", None)
    assert decision.retry_at > 0.1
    assert explain(decision, "r")["verdict"] == "held"
    seats[0].first_byte(0.2)
    assert world.decide(world.ask(chain(7, 20)), 0.2).picked is seats[0].endpoint


def test_nothing_is_taken_by_a_held_decision() -> None:
    world = World("a")
    world.seat(world.ask(chain(1, 20)))
    before = (world.pool.rotation.counter, world.pool.last, world.fleet.index.entries, world["a"].in_flight)
    assert world.decide(world.ask(chain(2, 20))).verdict is Verdict.HELD
    assert (world.pool.rotation.counter, world.pool.last, world.fleet.index.entries, world["a"].in_flight) == before


def test_caller_without_a_queue_is_never_told_to_hold() -> None:
    world = World("a")
    world.seat(world.ask(chain(1, 20)))
    assert world.decide(world.ask(chain(2, 20), may_hold=False)).verdict is Verdict.PICKED


def test_retry_is_never_held() -> None:
    world = World("a", "b")
    for number in range(2):
        world.seat(world.ask(chain(number, 20)))
    assert world.decide(world.ask(chain(9, 20), tried=("a",))).verdict is Verdict.PICKED


def held(world: World, size: int, now: float) -> tuple[Ask, Decision]:
    ask = world.ask(chain(50 + size, size), arrived_s=now)
    decision = world.decide(ask, now)
    assert decision.verdict is Verdict.HELD
    return ask, decision


def test_cheap_requests_go_first_and_nobody_waits_for_ever() -> None:
    world = World("a")
    world.seat(world.ask(chain(1, 200)))
    queue: HeldQueue[Ask] = HeldQueue()
    long, decision = held(world, 60, 0.0)
    queue.enter(long, decision, 0.0)
    short, decision = held(world, 10, 0.5)
    queue.enter(short, decision, 0.5)
    assert queue.head(0.6) is short
    late, decision = held(world, 10, 30.0)
    queue.enter(late, decision, 30.0)
    queue.leave(short)
    # 60 blocks are 3.84 s of prefill, 50 more than the late one's; 30 s of waiting outweigh that.
    assert queue.head(30.0) is long
    assert (len(queue), queue.held_total) == (2, 3)


def test_round_ends_at_a_full_fleet_and_passes_a_gated_request() -> None:
    world = World("a")
    world.seat(world.ask(chain(1, 200)))
    queue: HeldQueue[Ask] = HeldQueue()
    ask, decision = held(world, 10, 0.0)
    queue.enter(ask, decision, 0.0)
    assert queue.again(ask, decision, 0.1) is False
    assert queue.head(0.1) is ask
    decision.held, decision.retry_at = "cold_gate", 0.7
    assert queue.again(ask, decision, 0.2) is True
    assert queue.head(0.3) is None
    assert queue.next_look() == 0.7
    assert queue.head(0.7) is ask


# -- the cold gate ----------------------------------------------------------------------------------------------------


def thrash(gate_regret: float = 0.35) -> tuple[World, float]:
    """Two sessions too many for the caches, taking turns: each turn recomputes what the turn before pushed out."""
    world = World("a", cache_tokens=40 * BLOCK, gate_regret=gate_regret, hold_prefill_s=0.0)
    now = 0.0
    for turn in range(8):
        now = 20.0 * turn
        world.serve(world.ask(chain(turn % 2, 30), may_hold=False, arrived_s=now), now)
    return world, now


def test_cold_request_waits_while_the_fleet_thrashes() -> None:
    world, now = thrash()
    cold = world.ask(chain(9, 30), arrived_s=now)
    decision = world.decide(cold, now)
    assert (decision.verdict, decision.held) == (Verdict.HELD, "cold_gate")
    assert decision.regret > 0.35
    assert now < decision.retry_at <= now + 120.0


@pytest.mark.parametrize("case", ["warm", "waited", "deadline", "calm", "old", "unknown", "off"])
def test_gate_is_open_when(case: str) -> None:
    world, now = thrash(1.0 if case == "off" else 0.35)
    ask = world.ask(chain(9, 30), arrived_s=now)
    if case == "warm":
        ask = world.ask(chain(1, 40), arrived_s=now)
    elif case == "waited":
        ask.arrived_s = now - 121.0
    elif case == "deadline":
        ask.deadline_s = now + 0.1
    elif case == "calm":
        for number in range(200):
            world.fleet.ghosts.scheduled(chain(500 + number, 30), now)
    elif case == "old":
        world["a"].cache.learn([], now)  # type: ignore[union-attr]
        now += 250.0
        ask.arrived_s = now
    elif case == "unknown":
        world["a"].cache = None
        world["a"].cache_tokens = None
    assert world.decide(ask, now).verdict is Verdict.PICKED


# -- KV events --------------------------------------------------------------------------------------------------------


def test_engines_word_replaces_our_history_when_exact() -> None:
    world = World("a", "b")
    keys = chain(1, 10)
    for name in "ab":
        world.fleet.open_stream(world[name], BLOCK)
        world[name].mode = Mode.EXACT
    world.fleet.index.record(keys, world["a"].bit, 0.0)
    world.fleet.blocks_stored(world["b"], world["b"].streams[0], [(key, key) for key in keys[:6]], 1.0)
    decision = world.decide(world.ask(keys, chains={BLOCK: keys}), 10.0)
    assert (decision.depths, decision.mode, decision.picked) == ([0, 6], Mode.EXACT, world["b"])
    without_tokens = world.decide(world.ask(keys), 10.0)
    assert (without_tokens.depths, list(without_tokens.modes)) == ([10, 0], [])
    world["a"].mode = Mode.DEGRADED
    assert world.decide(world.ask(keys, chains={BLOCK: keys}), 10.0).depths == [10, 6]


def test_own_dispatch_stands_in_until_its_event_comes() -> None:
    world = World("a", "b")
    keys = chain(1, 10)
    for name in "ab":
        world.fleet.open_stream(world[name], BLOCK)
        world[name].mode = Mode.EXACT
    ask = world.ask(keys, chains={BLOCK: keys})
    seat = world.seat(ask, 1.0)
    assert max(world.decide(ask, 2.0).depths) == 10
    assert world.decide(ask, 2.0).picked is seat.endpoint
    assert world.decide(ask, 20.0).depths == [0, 0]


def test_hole_in_a_chain_ends_the_match() -> None:
    world = World("a")
    keys = chain(1, 10)
    stream = world.fleet.open_stream(world["a"], BLOCK)
    world["a"].mode = Mode.EXACT
    world.fleet.blocks_stored(world["a"], stream, [(key, key) for key in keys], 0.0)
    world.fleet.blocks_removed(world["a"], stream, [keys[4]], 0.0)
    assert world.decide(world.ask(keys, chains={BLOCK: keys}), 10.0).depths == [4]


def test_nobody_is_held_on_a_guess() -> None:
    """Answers that come whole teach no prefill: a queue that only the prior tells of would hold requests for ever."""
    world = World("a", "b", hold_samples=8)
    for number in range(20):
        world.seat(world.ask(chain(number, 100)))  # raises if it is held
