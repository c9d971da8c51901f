"""A fleet that fails in part or altogether: who is left alone, what is counted, what clients see (F37 to F82)."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from turnout.core import options
from turnout.core.fleet.registry import Fleet

if TYPE_CHECKING:
    from tests.support.client import Client
    from tests.support.router import Router

Routers = Callable[..., "Router"]
NEVER_OPEN = {"breaker": {"consecutive": 10**6, "ratio_min": 10**6}}
VIRTUAL = pytest.mark.parametrize("place", ["virtual"])  # seconds have to pass


def kinds(up: Router) -> Counter[str]:
    return Counter(a.error_kind for fact in up.records.facts for a in fact.attempts)


def test_F37_one_replica_that_only_fails_costs_no_client_an_error(
    router: Routers, script_engine: Any, wire: Any, rests: Any
) -> None:
    broken = script_engine(wire.answer(b"{}", 500))
    up = router(broken, script_engine(), script_engine())
    assert [up.ask().status for _ in range(60)] == [200] * 60
    assert len(broken.requests) == 3
    assert up.app.gateway.fleet.endpoints["e1"].breaker.state == "open"
    assert rests(up)


@VIRTUAL
def test_F38_when_everybody_fails_attempts_stay_within_the_budget(
    loop: Any, router: Routers, script_engine: Any, wire: Any
) -> None:
    """P06: a fifth of the requests and three per second, whatever fails."""
    arrived: list[tuple[float, bytes]] = []

    def refuse(request: Any) -> Any:
        arrived.append((loop.clock(), request.header(b"x-request-id") or b""))
        return [wire.answer(b"{}", 500)]

    up = router(*[script_engine(refuse) for _ in range(3)], **NEVER_OPEN)
    clients: list[Client] = []
    for number in range(400):  # forty per second for ten seconds
        loop.run(asyncio.sleep(max(0.0, 1100 + number / 40 - loop.clock())))
        clients.append(up.client())
        clients[-1].send(up.request(wire.chat()))
    answered = Counter(client.response().status for client in clients)
    assert set(answered) <= {500, 502, 503}
    assert all(len(fact.attempts) <= 3 for fact in up.records.facts)
    seen: set[bytes] = set()
    extra = [at for at, request_id in arrived if request_id in seen or seen.add(request_id)]  # type: ignore[func-returns-value]
    assert len(extra) > 100  # the budget was used, and held in any ten seconds
    assert max(sum(begin <= at < begin + 10.0 for at in extra) for begin in extra) <= 0.2 * 400 + 30


@VIRTUAL
def test_F39_a_third_of_failures_ejects_relative_to_the_pool(
    loop: Any, router: Routers, script_engine: Any, wire: Any
) -> None:
    flaky = script_engine()
    flaky.scripts = [[wire.answer(b"{}", 500)] if n % 3 == 0 else [wire.answer()] for n in range(10_000)]
    up = router(flaky, *[script_engine() for _ in range(3)], breaker={"ratio": 0.9})
    began = loop.clock()
    while not up.app.gateway.fleet.endpoints["e1"].ejected:
        assert up.ask().status == 200
        loop.run(asyncio.sleep(0.05))
        assert loop.clock() - began < 12
    assert up.app.gateway.fleet.endpoints["e1"].breaker.state == "closed"
    before = len(flaky.requests)
    assert [up.ask().status for _ in range(20)] == [200] * 20
    assert len(flaky.requests) == before


def test_F41_refused_for_the_rate_by_all_the_client_is_told_the_shortest_wait(
    router: Routers, script_engine: Any, wire: Any
) -> None:
    engines = [script_engine(wire.answer(b"{}", 429, b"Retry-After: %d" % after)) for after in (70, 17, 30)]
    up = router(*engines)
    for _ in range(5):
        refused = up.ask()
        assert (refused.status, refused.header(b"retry-after")) == (429, b"17")
    assert {e.breaker.state for e in up.app.gateway.fleet.endpoints.values()} == {"closed"}


@pytest.mark.parametrize("family", ["vllm", "sglang"])
def test_F48_an_engine_that_serves_another_model_is_not_asked_for_this_one(
    family: str, router: Routers, script_engine: Any, wire: Any
) -> None:
    other, right = script_engine(), script_engine()
    other.models = b'{"object":"list","data":[{"id":"another-model"}]}'
    right.models = b'{"object":"list","data":[{"id":"model-a","max_model_len":4096}]}'
    table = [
        {"name": name, "url": engine.url, "models": [wire.MODEL], "family": family}
        for name, engine in (("e1", other), ("e2", right))
    ]
    up = router(endpoint=table)
    assert up.eventually(lambda: wire.MODEL in up.app.gateway.fleet.endpoints["e1"].lost_models)
    assert up.eventually(lambda: up.app.gateway.fleet.endpoints["e2"].context_max == 4096)
    assert [up.ask().status for _ in range(10)] == [200] * 10
    assert other.requests == []


def test_F50_a_thousand_engines_that_come_and_go_cost_little_each() -> None:
    fleet = Fleet(options.Scheduling(), options.Prefix(), options.Breaker())
    described = [options.Endpoint(name=f"e{n}", url="http://127.0.0.1:1", models=["m"]) for n in range(1000)]
    took: list[float] = []

    def timed(act: Callable[[], object]) -> None:
        before = time.thread_time()  # what others of this machine do is not our cost
        act()
        took.append(time.thread_time() - before)

    for one in described:
        timed(functools.partial(fleet.add, one, 0.0))
    for one in described:
        timed(functools.partial(fleet.remove, one.name))
    assert sum(took) < 4.0
    assert sorted(took)[-20] < 0.02
    pool = fleet.pool("m")
    assert (len(fleet.endpoints), pool is None or not pool.members) == (0, True)


def test_F51_an_empty_pool_holds_requests_until_somebody_comes(router: Routers, script_engine: Any, wire: Any) -> None:
    engine = script_engine()
    up = router(engine, admission={"wait_for_endpoint": True, "queue_wait_s": 60.0})
    assert up.call(lambda: up.app.changes.drain("e1"))
    client = up.client()
    client.send(up.request(wire.chat()))
    assert up.eventually(lambda: up.app.gateway.recovery.doors.waiting == 1)
    up.call(lambda: up.app.changes.resume("e1"))
    assert client.response().status == 200


@VIRTUAL
def test_F51_and_refuses_them_when_their_time_is_over(router: Routers, script_engine: Any) -> None:
    up = router(script_engine(), admission={"wait_for_endpoint": True, "queue_wait_s": 5.0})
    up.call(lambda: up.app.changes.drain("e1"))
    refused = up.ask()
    assert (refused.status, refused.code) == (503, "queue_timeout")
    assert int(refused.header(b"retry-after") or 0) >= 1


@VIRTUAL
def test_F70_a_jump_of_ten_minutes_ends_no_stream_and_no_wait(
    loop: Any, router: Routers, script_engine: Any, wire: Any
) -> None:
    gate = wire.Gate()
    rest = [wire.chunk(wire.event(finish="stop")), wire.chunk(wire.DONE), b"0\r\n\r\n"]
    engine = script_engine([wire.STREAM_HEAD, wire.chunk(wire.event("a")), gate, *rest], [wire.answer()])
    up = router(endpoint=[{"name": "e1", "url": engine.url, "models": [wire.MODEL], "max_in_flight": 1}])
    streamed, queued = up.client(), up.client()
    streamed.send(up.request(wire.chat(stream=True)))
    streamed.read(wire.event("a"))
    queued.send(up.request(wire.chat()))
    assert up.eventually(lambda: up.app.gateway.recovery.doors.waiting == 1)
    loop.run(asyncio.sleep(0.5))
    loop.loop.now += 600.0  # what a suspended machine sees when it wakes
    loop.run(asyncio.sleep(1.0))
    assert [fact.outcome for fact in up.records.facts] == []
    gate.open()
    streamed.read(b"0\r\n\r\n")
    assert queued.response().status == 200
    assert [fact.outcome for fact in up.records.facts] == ["completed", "completed"]
    assert up.app.gateway.fleet.endpoints["e1"].breaker.state == "closed"


def key(name: str, text: str) -> options.Key:
    return options.Key(name=name, tenant="t", digest="sha256:" + hashlib.sha256(text.encode()).hexdigest())


def test_F80_keys_rotate_without_dropping_a_stream(router: Routers, script_engine: Any, wire: Any) -> None:
    gate = wire.Gate()
    rest = [wire.chunk(wire.event(finish="stop")), wire.chunk(wire.DONE), b"0\r\n\r\n"]
    up = router(script_engine([wire.STREAM_HEAD, wire.chunk(wire.event("a")), gate, *rest], [wire.answer()]))
    streamed = up.client()
    streamed.send(up.request(wire.chat(stream=True)))
    streamed.read(wire.event("a"))
    rotated = msgspec.structs.replace(up.config, key=[key("two", "tt-another-key-of-this-tenant")])
    up.app._reread = lambda: rotated
    up.call(up.app.reload)
    assert up.ask().status == 401
    assert up.ask(key="tt-another-key-of-this-tenant").status == 200
    gate.open()
    streamed.read(b"data: [DONE]")
    assert up.records.fact(1).outcome == "completed"


def test_F81_a_burst_is_admitted_queued_or_refused_at_once_and_nobody_is_lost(
    place: str, router: Routers, script_engine: Any, wire: Any, rests: Any
) -> None:
    gates = [wire.Gate() for _ in range(8)]
    engine = script_engine(*[[gate, wire.answer()] for gate in gates], [wire.answer()])
    table = [{"name": "e1", "url": engine.url, "models": [wire.MODEL], "max_in_flight": 8}]
    up = router(endpoint=table, admission={"queue_max": 16, "tenant_max_queued": 16, "queue_wait_s": 120.0})
    count = 1000 if place == "virtual" else 300
    clients = [up.client() for _ in range(count)]
    began = up.call(up.app.gateway.clock)
    for client in clients:
        client.send(up.request(wire.chat()))
    assert up.eventually(lambda: len(up.records.facts) == count - 24)
    if place == "virtual":
        assert up.call(up.app.gateway.clock) - began < 0.05
    for gate in gates:
        gate.open()
    answers = [client.response() for client in clients]
    assert Counter(one.status for one in answers) == {200: 24, 429: count - 24}
    assert all(int(one.header(b"retry-after") or 0) >= 1 for one in answers if one.status != 200)
    assert len(up.records.facts) == count
    assert rests(up)


@VIRTUAL
def test_F82_after_an_outage_clients_that_come_back_are_served_within_seconds(
    loop: Any, router: Routers, script_engine: Any, rests: Any
) -> None:
    """Twenty seconds of nothing but refused connections, clients that retry all the while, and no aftermath."""
    engines = [script_engine() for _ in range(2)]
    up = router(*engines)
    assert up.ask().status == 200
    ports = [engine.port for engine in engines]
    for engine in engines:
        engine.stop()
    down_from = loop.clock()
    while loop.clock() - down_from < 20.0:
        assert up.ask().status in (502, 503)
        loop.run(asyncio.sleep(0.2))
    for engine, port in zip(engines, ports, strict=True):
        engine._server = loop.run(loop.loop.create_server(engine._server.factory, "127.0.0.1", port))
    healed = loop.clock()
    while up.ask().status != 200:
        assert loop.clock() - healed < 5.0  # P5
        loop.run(asyncio.sleep(0.2))
    assert [up.ask().status for _ in range(50)] == [200] * 50
    assert rests(up)
