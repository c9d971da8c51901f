"""Requests that are bound late, on real sockets: simulated engines so slow that every one of them has prefill queued."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

if TYPE_CHECKING:
    from tests.support.client import Client
    from tests.support.loop import Loop
    from tests.support.router import Router

Routers = Callable[..., "Router"]
TOKENS = 4800  # 0.6 s of prefill
ADMIN = {"server": {"admin_listen": "127.0.0.1:0"}, "scheduling": {"hold_samples": 0}}


class Slow:
    """A simulated engine of 8000 prompt tokens per second, as the scenery of a router wants it."""

    def __init__(self, loop: Loop, model: str, name: str) -> None:
        self._loop = loop
        self.server = SimEngineServer(EngineOptions(model=model, name=name))
        host, port = loop.run(self.server.start())
        self.url = f"http://{host}:{port}"

    def stop(self) -> None:
        self._loop.run(self.server.stop())


def over_slow_engines(router: Routers, loop: Loop, model: str, grace_s: float) -> Iterator[Router]:
    engines = [Slow(loop, model, name) for name in ("a", "b")]
    load = {"scrape_interval_ms": 50, "idle_interval_ms": 50}
    up = router(*engines, **ADMIN, load=load, drain={"grace_s": grace_s})
    yield up
    up.stop()
    for engine in engines:
        engine.stop()


@pytest.fixture
def up(router: Routers, loop: Loop, wire: Any) -> Iterator[Router]:
    """A router over two slow engines."""
    yield from over_slow_engines(router, loop, wire.MODEL, 0.01)


@pytest.fixture
def up_with_grace(router: Routers, loop: Loop, wire: Any) -> Iterator[Router]:
    """The same, with time to end what was accepted."""
    yield from over_slow_engines(router, loop, wire.MODEL, 8.0)


def send(up: Router, *numbers: int) -> list[Client]:
    clients = []
    for number in numbers:
        prompt = list(range(number * 100_000, number * 100_000 + TOKENS))
        body = {"model": up.model, "prompt": prompt, "max_tokens": 4, "stream": True, "ignore_eos": True}
        client = up.client()
        client.send(up.request(body, path=b"/v1/completions"))
        clients.append(client)
    return clients


def holding(up: Router) -> int:
    return up.app.gateway.recovery.doors.gate(up.model).holding


def idle(up: Router) -> bool:
    gateway = up.app.gateway
    return not gateway.runs and not gateway.recovery.doors.waiting and not holding(up)


def test_held_requests_are_bound_one_by_one_as_engines_get_through_and_all_are_answered(up: Router) -> None:
    clients = send(up, *range(1, 7))
    assert up.eventually(lambda: len(up.app.gateway.runs) == 6)
    assert up.call(lambda: holding(up)) == 4
    assert [member.in_flight for member in up.call(lambda: list(up.app.gateway.fleet.endpoints.values()))] == [1, 1]
    answers = [client.response() for client in clients]
    assert [(seen.status, seen.whole) for seen in answers] == [(200, True)] * 6
    assert up.eventually(lambda: idle(up))
    waits = sorted(fact.queue_ms or 0 for fact in up.records.facts)
    assert waits[:2] == [0, 0]
    assert 50 < waits[2] <= waits[5] < 4000
    page = up.ask(method=b"GET", path=b"/metrics", port=up.admin_port).body
    assert b'turnout_schedule_held_total{reason="queue"} 4.0' in page
    assert page.count(b"turnout_schedule_picks_total{") == 2


def test_client_that_leaves_while_held_is_forgotten_and_the_others_are_served(up: Router) -> None:
    *first, gone, stays = send(up, *range(1, 5))
    assert up.eventually(lambda: holding(up) == 2)
    gone.close(reset=True)
    assert up.eventually(lambda: holding(up) == 1)
    assert [client.response().status for client in (*first, stays)] == [200] * 3
    assert up.eventually(lambda: idle(up))
    assert sorted(fact.outcome for fact in up.records.facts) == ["client_gone", "completed", "completed", "completed"]


def test_drain_ends_held_requests_with_an_answer(up: Router) -> None:
    clients = send(up, *range(1, 4))
    assert up.eventually(lambda: holding(up) == 1)
    leaving = up.call(lambda: asyncio.get_running_loop().create_task(up.app.stop()))
    assert sorted(client.response().status for client in clients) == [503] * 3
    assert up.eventually(leaving.done)
    assert idle(up)
    assert [fact.outcome for fact in up.records.facts] == ["shutdown"] * 3


def test_held_requests_are_served_within_the_grace(up_with_grace: Router) -> None:
    up = up_with_grace
    clients = send(up, *range(1, 4))
    assert up.eventually(lambda: holding(up) == 1)
    leaving = up.call(lambda: asyncio.get_running_loop().create_task(up.app.stop()))
    assert sorted(client.response().status for client in clients) == [200] * 3
    assert up.eventually(leaving.done)
    assert [fact.outcome for fact in up.records.facts] == ["completed"] * 3
