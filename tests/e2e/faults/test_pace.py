"""How slow an engine may be: a stream that shows signs of life is waited for, a whole answer that trickles is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.router import Router

Routers = Callable[..., "Router"]


class Drip:
    """Writes an answer piece by piece; `seconds` apart."""

    def __init__(self, head: bytes, pieces: list[bytes], seconds: float) -> None:
        self._pieces, self._seconds, self._head = pieces, seconds, head

    def __call__(self, transport: asyncio.Transport, _: bytes) -> None:
        transport.write(self._head)
        self._next(transport, 0)

    def _next(self, transport: asyncio.Transport, number: int) -> None:
        if number < len(self._pieces) and not transport.is_closing():
            transport.write(self._pieces[number])
            asyncio.get_running_loop().call_later(self._seconds, self._next, transport, number + 1)


def whole(wire: Any, before: bytes = b"") -> tuple[bytes, bytes]:
    """Head and body of an answer; its content length has room for what comes before the body."""
    head = wire.answer(before + wire.ANSWER).partition(b"\r\n\r\n")[0]
    return head + b"\r\n\r\n", wire.ANSWER


def house(router: Routers, wire: Any, scale: float, slow: Any, good: Any) -> Router:
    """The slow engine is asked first; no limit but the one of F28 can pass."""
    table = [
        {"name": name, "url": engine.url, "models": [wire.MODEL], "standby": engine is good}
        for name, engine in (("e1", slow), ("e2", good))
    ]
    late = {"response_min_s": 300 * scale, "response_unknown_s": 300 * scale, "response_max_s": 300 * scale}
    pace = {"body_min_bytes_per_s": 64 / scale, "body_min_after_s": 30 * scale}
    return router(timeout={**late, **pace}, endpoint=table, probe={"interval_s": 600})


def test_F28_a_whole_answer_that_trickles_is_left_for_another(
    router: Routers, raw_engine: Any, script_engine: Any, wire: Any, scale: float, rests: Any
) -> None:
    head, body = whole(wire)
    slow = raw_engine(Drip(head, [body[i : i + 1] for i in range(len(body))], scale))  # a byte per second
    up = house(router, wire, scale, slow, script_engine())
    began = up.call(up.app.gateway.clock)
    answered = up.ask(wire.chat())
    assert up.call(up.app.gateway.clock) - began >= 30 * scale
    assert (answered.status, answered.whole) == (200, True)
    fact = up.records.fact()
    assert [(a.error_kind, a.ok) for a in fact.attempts] == [("timeout_response", False), ("", True)]
    assert up.eventually(lambda: len(slow.lost) > 0)  # nobody reads on
    assert rests(up)


def test_F28_alone_it_is_a_time_out(router: Routers, raw_engine: Any, wire: Any, scale: float, rests: Any) -> None:
    head, body = whole(wire)
    slow = raw_engine(Drip(head, [body[i : i + 1] for i in range(len(body))], scale))
    up = router(slow, timeout={"body_min_bytes_per_s": 64 / scale, "body_min_after_s": 30 * scale})
    answered = up.ask(wire.chat())
    assert (answered.status, answered.code) == (504, "upstream_timeout")
    assert rests(up)


PATIENT: dict[str, dict[str, float]] = {"fast enough": {}, "no pace asked": {"body_min_bytes_per_s": 0}}


@pytest.mark.parametrize("place", ["virtual"])  # a machine that stands still would make the engine too slow
@pytest.mark.parametrize("table", PATIENT.values(), ids=PATIENT)
def test_F28_a_slow_answer_at_a_pace_is_waited_for(
    table: dict[str, float], router: Routers, raw_engine: Any, wire: Any, scale: float
) -> None:
    """Longer than 30 s in all; the first seconds are line ends, as some services send them while a request waits."""
    signs = [b"\n"] * 15
    head, body = whole(wire, before=b"".join(signs))
    step = max(1, len(body) // 39)
    pieces = signs + [body[i : i + step] for i in range(0, len(body), step)]
    rate = {"body_min_bytes_per_s": len(body) / (80 * scale)}  # twice as fast as that
    slow = raw_engine(Drip(head, pieces, scale))
    up = router(slow, timeout={"body_min_after_s": 30 * scale, **rate, **table})
    began = up.call(up.app.gateway.clock)
    answered = up.ask(wire.chat())
    assert (answered.status, answered.body.strip()) == (200, body)
    assert up.call(up.app.gateway.clock) - began >= 50 * scale


SIGNS_OF_LIFE = {"comments": (b": ping\n\n", False), "halves": (b"data: {", False), "pings": (b"event: ping\n\n", True)}


@pytest.mark.parametrize("place", ["virtual"])  # with the default times
@pytest.mark.parametrize(("sign", "alive"), SIGNS_OF_LIFE.values(), ids=SIGNS_OF_LIFE)
def test_D4_pings_count_and_comments_do_not(
    sign: bytes,
    alive: bool,  # noqa: FBT001 - a column
    loop: Any,
    router: Routers,
    script_engine: Any,
    wire: Any,
) -> None:
    gates = [wire.Gate() for _ in range(5)]
    signs = [step for gate in gates for step in (gate, wire.chunk(sign))]
    up = router(script_engine([wire.STREAM_HEAD, wire.chunk(wire.event("a")), *signs, wire.Gate()]))
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    client.read(wire.event("a"))
    began = loop.clock()
    for gate in gates:
        gate.open()
        loop.run(asyncio.sleep(14.0))
        if up.records.facts:
            break
    assert bool(up.records.facts) is not alive
    assert up.eventually(lambda: bool(up.records.facts), 600.0)
    assert up.records.fact().attempts[0].error_kind == "timeout_stall"
    assert (loop.clock() - began > 56.0 + 20.0) is alive


@pytest.mark.parametrize("place", ["virtual"])
@pytest.mark.parametrize("seconds", [110.0, 130.0])
def test_F28_a_stream_lives_while_an_output_event_comes_every_two_minutes(
    seconds: float, router: Routers, raw_engine: Any, wire: Any
) -> None:
    """Pings keep it from being silent; what it is waited for is output."""
    pings = [wire.chunk(b"event: ping\n\n")] * int(seconds / 10 - 1)
    outputs = [[wire.chunk(wire.event(word)), *pings] for word in "abc"]
    end = [wire.chunk(wire.event(finish="stop")) + wire.chunk(wire.DONE) + b"0\r\n\r\n"]
    up = router(raw_engine(Drip(wire.STREAM_HEAD, [piece for one in outputs for piece in one] + end, 10.0)))
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    assert up.eventually(lambda: bool(up.records.facts), 600.0)
    assert [(a.ok, a.error_kind) for a in up.records.fact().attempts] == [
        (True, "") if seconds < 120 else (False, "timeout_stall")
    ]
