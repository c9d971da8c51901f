"""Requests that are bound late, through the doors of the gateway: exchanges on virtual time, no sockets."""

from __future__ import annotations

import random

import pytest

from turnout.core import options
from turnout.core.admission.gate import Applicant
from turnout.core.errors import Outcome
from turnout.core.exchange import Exchange
from turnout.core.fleet.registry import Fleet
from turnout.core.lifecycle import GiveUp, Next, Open, Queued
from turnout.core.retry_budget import RetryBudget
from turnout.core.retry_loop import Route
from turnout.core.scheduling.ask import Ask
from turnout.gateway.admission import Doors

BLOCK = 512
TENTH = 0.1


def chain(start: int, length: int) -> list[int]:
    return list(range(start * 1_000_000 + 1, start * 1_000_000 + 1 + length))


class Scene:
    """Engines named in words, one model, the doors, and a clock that the test moves."""

    def __init__(
        self,
        *names: str,
        admission: options.Admission | None = None,
        cache_tokens: int | None = None,
        max_in_flight: int = 256,
        **scheduling: object,
    ) -> None:
        given = {"policy": "turnout", "gate_regret": 1.0, "hold_samples": 0, **scheduling}
        self.fleet = Fleet(options.Scheduling(**given), options.Prefix(), options.Breaker())  # type: ignore[arg-type]
        for name in names:
            self.fleet.add(
                options.Endpoint(
                    name=name,
                    url="http://127.0.0.1:1",
                    models=["m"],
                    cache_tokens=cache_tokens,
                    max_in_flight=max_in_flight,
                ),
                0.0,
            )
        self.doors = Doors(admission or options.Admission(), self.fleet)
        self.gate = self.doors.gate("m")
        self.budget = RetryBudget(options.Retry())
        self.now = 0.0
        self.served: list[Client] = []

    def ask(self, keys: list[int], tenant: str = "t", total_s: float = 600.0) -> Client:
        return Client(self, keys, tenant, total_s)

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until - 1e-9:
            self.now = round(self.now + TENTH, 6)
            self.doors.tick(self.now)

    def heard(self) -> None:
        """Every endpoint has just reported."""
        for endpoint in list(self.fleet.endpoints.values()):
            self.doors.changed(endpoint, self.now)

    def is_idle(self) -> bool:
        members = self.fleet.endpoints.values()
        gate = self.gate
        left = (gate.queue.size, gate.holding, gate.queued(), gate.queued_bytes, len(gate.held), gate.anonymous)
        return not any(left) and not any(member.in_flight or member.prefill.work_s for member in members)


class Client:
    """One request; the owner of its exchange."""

    def __init__(self, scene: Scene, keys: list[int], tenant: str, total_s: float) -> None:
        self.scene, self.tenant = scene, tenant
        pool = scene.fleet.pool("m")
        assert pool is not None
        self.outcome: Outcome | None = None
        self.endpoint = ""
        ask = Ask("m", keys, max(1, len(keys)) * BLOCK, 1, relax=True, block_tokens=float(BLOCK))
        self.exchange = Exchange(
            ask,
            pool,
            scene.fleet,
            options.Retry(),
            scene.budget,
            random.Random(1),
            scene.now,
            total_s,
            scene.gate,
            self,
        )
        self._follow(self.exchange.begin(scene.now, anonymous=not tenant))

    @property
    def waits(self) -> bool:
        return not self.endpoint and self.outcome is None

    def first_byte(self) -> None:
        self.exchange.first_byte(self.scene.now)
        self.scene.doors.wake(self.scene.gate, self.scene.now)

    def ends(self) -> None:
        if self.exchange.attempts[-1].first_byte_s is None:
            self.exchange.first_byte(self.scene.now)
        self.exchange.committed()
        self.exchange.completed(None, self.scene.now, 200)
        self.outcome = Outcome.COMPLETED
        self.scene.doors.wake(self.scene.gate, self.scene.now)

    def leaves(self) -> None:
        self._close(Outcome.CLIENT_GONE)
        self.scene.doors.wake(self.scene.gate, self.scene.now)

    # -- owner of an exchange, and of a ticket

    def applicant(self) -> Applicant:
        return Applicant(
            tenant=self.tenant, cost=1.0, deadline_s=self.exchange.deadline_s, anonymous=not self.tenant, body_bytes=10
        )

    def has_next_model(self) -> bool:
        return False

    def next_model(self) -> Route | None:
        return None

    def turn(self) -> bool:
        following = self.exchange.turn(self.scene.now)
        if following is None:
            return False
        self._follow(following)
        return True

    def queue_expired(self) -> None:
        self._follow(self.exchange.queue_expired(self.scene.now))

    def _follow(self, following: Next) -> None:
        if isinstance(following, Open):
            self.endpoint = following.attempt.endpoint.name
            self.scene.served.append(self)
        elif isinstance(following, GiveUp):
            self._close(following.outcome)
        else:
            assert isinstance(following, Queued)

    def _close(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.exchange.close(outcome, self.scene.now)


def busy(scene: Scene, *lengths: int) -> list[Client]:
    """Requests that fill the engines: so many blocks each, one after the other."""
    return [scene.ask(chain(100 + number, length)) for number, length in enumerate(lengths)]


def test_request_is_held_while_every_engine_has_prefill_queued_and_bound_at_the_first_byte() -> None:
    scene = Scene("a", "b")
    first, second = busy(scene, 60, 60)
    held = scene.ask(chain(1, 10))
    assert held.waits
    assert (scene.gate.holding, scene.fleet.endpoints["a"].in_flight) == (1, 1)
    second.first_byte()
    assert held.endpoint == second.endpoint
    for each in (first, second, held):
        each.ends()
    assert scene.is_idle()


def test_request_is_bound_when_time_alone_has_shortened_a_queue() -> None:
    scene = Scene("a")
    busy(scene, 10)  # 5120 tokens: 0.64 s at the prior speed
    held = scene.ask(chain(1, 10))
    scene.pass_time(0.3)
    assert held.waits
    scene.pass_time(0.2)
    assert held.endpoint == "a"


def test_wait_of_a_held_request_is_told_to_the_ledger() -> None:
    scene = Scene("a")
    first = busy(scene, 60)[0]
    held = scene.ask(chain(1, 10))
    scene.pass_time(1.5)
    first.first_byte()
    assert held.exchange.trouble is not None
    assert held.exchange.trouble.queued_s == pytest.approx(1.5)


def test_report_that_an_engine_is_through_binds_who_is_held() -> None:
    scene = Scene("a")
    first = busy(scene, 60)[0]
    held = scene.ask(chain(1, 10))
    scene.heard()
    assert held.waits
    first.exchange.first_byte(scene.now)  # nobody was woken by this
    scene.heard()
    assert held.endpoint == "a"


def test_short_prefill_is_bound_before_a_long_one_that_came_earlier() -> None:
    scene = Scene("a")
    first = busy(scene, 60)[0]
    long = scene.ask(chain(1, 60))
    scene.pass_time(0.5)
    short = scene.ask(chain(2, 10))
    first.first_byte()
    assert (short.endpoint, long.waits) == ("a", True)
    short.first_byte()
    assert long.endpoint == "a"


def test_tenants_take_turns_among_held_requests() -> None:
    scene = Scene("a")
    first = busy(scene, 60)[0]
    greedy = [scene.ask(chain(number, 10), "greedy") for number in range(1, 4)]
    other = scene.ask(chain(9, 10), "other")
    last = first
    for _ in range(4):
        last.first_byte()
        last = scene.served[-1]
    assert scene.served[1:] == [greedy[0], other, *greedy[1:]]


@pytest.mark.parametrize("total_s", [600.0, 20.0])
def test_holding_never_costs_a_request_its_answer(total_s: float) -> None:
    scene = Scene("a")
    busy(scene, 6000)
    held = [scene.ask(chain(number, 10), total_s=total_s) for number in range(1, 4)]
    wait_s = min(total_s, options.Admission().queue_wait_s)
    scene.pass_time(wait_s - 0.3)
    assert all(each.waits for each in held)
    scene.pass_time(0.4)
    assert [each.endpoint for each in held] == ["a"] * 3


def test_client_that_leaves_while_held_leaves_nothing_behind() -> None:
    scene = Scene("a")
    first = busy(scene, 60)[0]
    one, other = scene.ask(chain(1, 10)), scene.ask(chain(2, 10))
    one.leaves()
    assert (one.outcome, scene.gate.holding) == (Outcome.CLIENT_GONE, 1)
    first.first_byte()
    assert other.endpoint == "a"
    first.ends()
    other.ends()
    assert scene.is_idle()


def test_who_finds_no_slot_to_wait_in_is_bound_at_once() -> None:
    scene = Scene("a", admission=options.Admission(queue_max=2))
    busy(scene, 60)
    clients = [scene.ask(chain(number, 10)) for number in range(1, 5)]
    assert [each.waits for each in clients] == [True, True, False, False]
    assert [each.endpoint for each in clients[2:]] == ["a", "a"]


def test_slow_start_of_answers_does_not_shed_who_is_held() -> None:
    scene = Scene("a")
    scene.gate.drained.gave_back(5, 0.0)  # one place per six seconds: the eighth would come too late
    busy(scene, 60)
    clients = [scene.ask(chain(number, 10)) for number in range(1, 12)]
    assert all(each.waits for each in clients)


def test_engine_that_is_full_makes_wait_for_a_place_as_ever() -> None:
    scene = Scene("a", max_in_flight=1)
    first = busy(scene, 60)[0]
    waiting = scene.ask(chain(1, 10))
    assert (waiting.waits, scene.gate.holding) == (True, 0)
    scene.pass_time(30.1)
    assert waiting.outcome is Outcome.QUEUE_EXPIRED
    first.ends()
    assert scene.is_idle()


def test_anonymous_requests_are_held_and_counted_once() -> None:
    scene = Scene("a")
    first = scene.ask(chain(1, 60), "")
    held = scene.ask(chain(2, 10), "")
    assert (held.waits, scene.gate.anonymous) == (True, 1)
    first.first_byte()
    assert (held.endpoint, scene.gate.anonymous) == ("a", 2)
    first.ends()
    held.ends()
    assert scene.is_idle()


# -- the cold gate ----------------------------------------------------------------------------------------------------


def thrashing() -> Scene:
    """One engine whose cache holds one of the two sessions that alternate on it."""
    scene = Scene("a", cache_tokens=40 * BLOCK, gate_regret=0.35, hold_prefill_s=0.0)
    for turn in range(12):
        client = scene.ask(chain(turn % 2, 30))
        while client.waits:
            scene.pass_time(TENTH)
        client.ends()
        scene.now += 1.0
    return scene


def test_cold_request_waits_at_the_gate_and_warm_sessions_pass_it() -> None:
    scene = thrashing()
    cold = scene.ask(chain(7, 30))
    assert (cold.waits, scene.gate.queue.size) == (True, 1)
    warm = scene.ask(chain(1, 31))
    assert warm.endpoint == "a"
    warm.ends()
    assert cold.waits


def test_warm_session_behind_a_gated_one_is_served_when_a_place_is_free() -> None:
    scene = thrashing()
    cold = scene.ask(chain(7, 30))
    endpoint = scene.fleet.endpoints["a"]
    endpoint.places = 1
    running = scene.ask(chain(1, 31))
    warm = scene.ask(chain(1, 32))
    assert warm.waits
    scene.now += 0.6  # the gated one is due, and at the head
    running.ends()
    assert (warm.endpoint, cold.waits) == ("a", True)


def test_gate_opens_before_the_longest_wait_is_over() -> None:
    scene = thrashing()
    cold = scene.ask(chain(7, 30))
    scene.pass_time(options.Admission().queue_wait_s + 0.1)
    assert cold.endpoint == "a"
    cold.ends()
    assert scene.is_idle()


def test_gated_request_is_refused_when_the_queue_is_full_and_told_when_to_return() -> None:
    scene = thrashing()
    scene.doors.reconfigure(options.Admission(queue_max=1))
    scene.ask(chain(7, 30))
    refused = scene.ask(chain(8, 30))
    assert refused.outcome in (Outcome.QUEUE_FULL, Outcome.PRINCIPAL_OVER_SHARE)


def test_client_that_leaves_the_gate_leaves_nothing_behind() -> None:
    scene = thrashing()
    cold = scene.ask(chain(7, 30))
    cold.leaves()
    assert scene.is_idle()
    scene.pass_time(1.0)
    assert scene.is_idle()


# -- the price of those who are not held


def test_request_that_is_not_held_asks_nothing_of_the_queue() -> None:
    scene = Scene("a", "b")
    client = scene.ask(chain(1, 10))
    assert client.endpoint
    assert client.exchange.trouble is None
