"""Leaving on real sockets: who is served until the end, who is sent away, and in which order (resilience §10)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.client import Client
    from tests.support.engine import Engine
    from tests.support.router import Router

Routers = Callable[..., "Router"]
Engines = Callable[..., "Engine"]


def leave(up: Router) -> asyncio.Task[None]:
    """Begin to stop the router."""
    return up.call(lambda: asyncio.get_running_loop().create_task(up.app.stop()))


def one_place(engine: Engine, model: str) -> list[dict[str, Any]]:
    return [{"name": "e1", "url": engine.url, "models": [model], "max_in_flight": 1}]


def sent(up: Router, body: Any) -> Client:
    client = up.client()
    client.send(up.request(body))
    return client


def waiting(up: Router) -> int:
    return up.app.gateway.recovery.doors.waiting


def test_X1_not_ready_at_once_and_open_until_the_notice_is_over(router: Routers, script_engine: Engines) -> None:
    up = router(script_engine(), drain={"notice_s": 3.0, "grace_s": 60.0})
    kept = up.client()
    ready = up.request(method=b"GET", path=b"/ready")
    kept.send(ready)
    assert kept.response().status == 200
    began = time.monotonic()
    leaving = leave(up)
    assert up.eventually(lambda: not up.app.gateway.ready)
    kept.send(ready)
    assert kept.response().status == 503
    assert up.ask().status == 200  # a balancer may not have seen it yet
    assert up.eventually(lambda: up.app.gateway.draining)
    assert time.monotonic() - began >= 3.0
    assert kept.is_closed()  # an idle connection has nothing to wait for
    assert up.eventually(leaving.done)


def test_X1_a_connection_that_has_not_asked_yet_is_answered_and_not_reset(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    gate = wire.Gate()
    up = router(script_engine([gate, wire.answer()]), drain={"grace_s": 60.0})
    running, new = sent(up, wire.chat()), up.client()
    assert up.eventually(lambda: (len(up.app.listener.connections), len(up.app.gateway.runs)) == (2, 1))
    leaving = leave(up)
    assert up.eventually(lambda: up.app.gateway.draining)
    new.send(up.request(wire.chat()))
    refused = new.response()
    assert (refused.status, refused.code) == (503, "draining")
    gate.open()
    assert running.response().status == 200
    assert up.eventually(leaving.done)


def test_X2_queued_requests_are_served_within_the_grace(router: Routers, script_engine: Engines, wire: Any) -> None:
    gate = wire.Gate()
    engine = script_engine([gate, wire.answer()], [wire.answer()])
    up = router(engine, drain={"grace_s": 5.0}, endpoint=one_place(engine, wire.MODEL))
    kept = up.client()
    kept.send(up.head(b"Content-Length: 10") + b"{")  # a request whose body is still under way
    running, queued = sent(up, wire.chat()), sent(up, wire.chat())
    assert up.eventually(lambda: waiting(up) == 1)
    leaving = leave(up)
    assert up.eventually(lambda: up.app.gateway.draining)
    late = up.ask()
    assert (late.status, late.code) == (503, "draining")
    assert (late.header(b"retry-after"), late.header(b"connection")) == (b"15", b"close")
    gate.open()
    for client in (running, queued):
        answered = client.response()
        assert (answered.status, answered.header(b"connection")) == (200, b"close")
        assert client.is_closed()
    assert up.eventually(leaving.done)
    assert sorted(fact.outcome for fact in up.records.facts) == ["completed", "completed"]


def test_X3_when_the_grace_is_over_everybody_is_told(router: Routers, script_engine: Engines, wire: Any) -> None:
    streaming = [wire.STREAM_HEAD, wire.chunk(wire.event("a")), wire.Gate()]
    engine = script_engine(streaming, [wire.Gate()])
    up = router(engine, drain={"grace_s": 0.2}, endpoint=one_place(engine, wire.MODEL))
    streamed = sent(up, wire.chat(stream=True))
    streamed.read(wire.event("a"))
    queued = sent(up, wire.chat())
    assert up.eventually(lambda: waiting(up) == 1)
    leaving = leave(up)
    refused = queued.response()
    assert (refused.status, refused.code, refused.header(b"retry-after")) == (503, "draining", b"15")
    rest = streamed.rest()
    assert b'data: {"error":' in rest
    assert b"[DONE]" not in rest
    assert not rest.endswith(b"0\r\n\r\n")
    assert engine.request().closed.wait(30)
    assert up.eventually(leaving.done)
    assert sorted((fact.outcome, len(fact.attempts)) for fact in up.records.facts) == [("shutdown", 0), ("shutdown", 1)]


def test_X3_a_second_signal_does_not_wait_for_the_notice(router: Routers, script_engine: Engines) -> None:
    up = router(script_engine(), drain={"notice_s": 60.0, "grace_s": 60.0})
    leaving = leave(up)
    up.call(up.app.request_stop)
    up.call(up.app.request_stop)
    assert up.eventually(leaving.done)


def test_two_stops_are_one_and_both_wait_for_its_end(router: Routers, script_engine: Engines, wire: Any) -> None:
    gate = wire.Gate()
    up = router(script_engine([gate, wire.answer()]), drain={"grace_s": 5.0}, server={"admin_listen": "127.0.0.1:0"})
    running = sent(up, wire.chat())
    assert up.eventually(lambda: bool(up.app.gateway.runs))
    first, second = leave(up), leave(up)
    assert up.eventually(lambda: up.app.gateway.draining)
    assert (first.done(), second.done()) == (False, False)
    gate.open()
    assert running.response().status == 200
    assert up.eventually(first.done)
    assert up.eventually(second.done)
    assert up.call(lambda: [str(t) for t in asyncio.all_tasks() if "uvicorn" in str(t) or "_end" in str(t)]) == []
