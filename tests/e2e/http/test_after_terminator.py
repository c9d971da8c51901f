"""Once a stream's terminator is with the client nothing may follow it, whatever the engine's connection does (P3)."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_after_the_terminator_is_the_end(router: Any, script_engine: Any, wire: Any, *, reset: bool) -> None:
    """The announced length is a lie: it was answered by a second answer, joined on behind `[DONE]`."""
    body = wire.event("one ") + wire.event("two ") + wire.event(None, "stop") + wire.DONE
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % (len(body) + 50)
    engines = [script_engine([head, body, wire.Cut(reset=reset)]) for _ in range(2)]
    tables = [
        {"name": f"e{n}", "url": e.url, "models": [wire.MODEL], "continuation": True} for n, e in enumerate(engines)
    ]
    up = router(endpoint=tables, resume={"scope": "replicas"})
    answer = up.ask(wire.chat(stream=True))
    assert answer.whole
    assert answer.body.count(b"[DONE]") == 1
    assert b"resumed" not in answer.body
    assert b'"error"' not in answer.body
    assert sum(len(engine.requests) for engine in engines) == 1
    assert str(up.records.fact(0).outcome) == "completed"
