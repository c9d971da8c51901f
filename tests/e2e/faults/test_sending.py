"""An engine that does not take the request: D7 ends the attempt, and somebody else is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.client import Response
    from tests.support.router import Router

LONG = 12_000_000  # more than the kernel takes for a peer that does not read


def deaf(transport: asyncio.Transport, _: bytes) -> None:
    transport.pause_reading()


def ask(up: Router, wire: Any, *, stream: bool) -> Response:
    return up.ask(wire.chat(messages=[{"role": "user", "content": "a" * LONG}], stream=stream))


def limits(scale: float, **more: Any) -> dict[str, Any]:
    # No other limit passes earlier: what is seen is this one.
    return {"send_s": 30 * scale, "first_token_s": 300 * scale, "first_token_failover_s": 100 * scale, **more}


@pytest.mark.parametrize("stream", [True, False])
def test_D7_an_engine_that_takes_no_byte_is_left_for_another(
    stream: bool,  # noqa: FBT001 - a parameter
    place: str,
    router: Callable[..., Router],
    script_engine: Any,
    raw_engine: Any,
    wire: Any,
    scale: float,
    rests: Callable[[Router], bool],
) -> None:
    asked: list[asyncio.Transport] = []

    def deaf_once_asked(transport: asyncio.Transport, data: bytes) -> None:
        asked.append(transport)
        deaf(transport, data)

    silent, good = raw_engine(deaf_once_asked), script_engine()
    good.says(wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE) if stream else [wire.answer()])
    table = [
        {"name": name, "url": engine.url, "models": [wire.MODEL], "standby": engine is good}
        for name, engine in (("e1", silent), ("e2", good))
    ]
    up = router(timeout=limits(scale), endpoint=table, probe={"interval_s": 600})
    began = up.call(up.app.gateway.clock)
    answered = ask(up, wire, stream=stream)
    took = up.call(up.app.gateway.clock) - began
    assert (answered.status, answered.whole) == (200, True)
    assert took >= 30 * scale
    if place == "virtual":
        assert took < 36
    fact = up.records.fact()
    assert [(a.error_kind, a.ok, a.counted) for a in fact.attempts] == [("timeout_send", False, True), ("", True, True)]
    assert fact.route is not None
    assert fact.route.replica == "e2"
    assert up.app.meter.attempts["e1", "timeout_send"] == 1
    up.call(silent.wake)
    assert up.eventually(asked[0].is_closing)  # the connection was closed: nobody waits for it
    assert rests(up)


def test_D7_alone_it_is_a_time_out_and_the_endpoint_is_out_until_it_is_reached_again(
    router: Callable[..., Router], raw_engine: Any, wire: Any, scale: float, rests: Callable[[Router], bool]
) -> None:
    up = router(raw_engine(deaf), timeout=limits(scale), probe={"interval_s": 600})
    answered = ask(up, wire, stream=False)
    assert (answered.status, answered.code) == (504, "upstream_timeout")
    assert "e1=timeout_send(-)" in answered.json["error"]["message"]
    assert up.records.fact().outcome == "upstream_timeout"
    assert up.app.gateway.fleet.endpoints["e1"].breaker.state == "closed"
    assert up.eventually(lambda: not up.app.gateway.fleet.endpoints["e1"].unreachable)  # its next probe was answered
    assert rests(up)


def test_D7_an_engine_that_reads_slowly_is_not_cut(
    router: Callable[..., Router], raw_engine: Any, wire: Any, scale: float
) -> None:
    """Bytes that are taken, however few, begin the time anew."""

    def sip(transport: asyncio.Transport, data: bytes) -> None:
        taken[0] += len(data)
        if taken[0] < LONG:
            if (len(waits) - 1) * (LONG // 5) < taken[0]:
                waits.append(taken[0])
                transport.pause_reading()
                asyncio.get_running_loop().call_later(12 * scale, transport.resume_reading)
        else:
            transport.write(wire.answer())

    taken, waits = [0], [0]
    up = router(raw_engine(sip), timeout=limits(scale), probe={"interval_s": 600})
    began = up.call(up.app.gateway.clock)
    assert ask(up, wire, stream=False).status == 200
    assert len(waits) > 4
    assert up.call(up.app.gateway.clock) - began > 40 * scale  # longer than the limit in all
