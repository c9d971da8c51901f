"""`x_turnout` in answers: what the session used with this call, only for whom asked, in each form an answer takes."""

from __future__ import annotations

import json
from typing import Any

from turnout.core.pricing import Price, PriceBook

BOOK = PriceBook.of(7, [Price(model="model-a", p_in=5_000_000, p_out=15_000_000)])
OPT_IN = (b"x-turnout-session-totals: on", b"x-turnout-session: s1")


def _documents(body: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]


def _priced(router: Any, engine: Any) -> Any:
    one = router(engine)
    one.records.book = BOOK
    return one


def test_a_whole_answer_has_the_totals_with_this_call(router: Any, script_engine: Any, loop: Any) -> None:
    one = _priced(router, script_engine())
    for calls in (1, 2, 3):
        answer = one.ask(None, *OPT_IN)
        assert answer.status == 200
        found = answer.json["x_turnout"]["session"]
        assert (found["session_id"], found["calls"], found["failed"]) == ("s1", calls, 0)
        assert (found["tokens_in"], found["tokens_out"]) == (3 * calls, calls)
        assert (found["cost_usd"], found["priced"], found["in_flight"]) == (f"0.0000{3 * calls}0000", calls, 0)
        loop.settle()


def test_who_does_not_ask_gets_the_engines_bytes(router: Any, script_engine: Any, wire: Any) -> None:
    one = _priced(router, script_engine())
    one.ask(None, *OPT_IN)
    assert one.ask(None, b"x-turnout-session: s1").body == wire.ANSWER


def test_without_a_session_there_are_no_totals(router: Any, script_engine: Any) -> None:
    one = _priced(router, script_engine())
    assert one.ask(None, OPT_IN[0]).json["x_turnout"] == {"session": None}


def test_sessions_of_others_are_not_counted(router: Any, script_engine: Any) -> None:
    one = _priced(router, script_engine())
    one.ask(None, *OPT_IN)
    assert one.ask(None, OPT_IN[0], b"x-turnout-session: s2").json["x_turnout"]["session"]["calls"] == 1


def test_a_stream_tells_before_its_end(router: Any, script_engine: Any, wire: Any) -> None:
    stream = wire.stream(wire.event("a"), wire.event(finish="stop"), wire.USAGE, wire.DONE)
    one = _priced(router, script_engine(stream, stream))
    for calls in (1, 2):
        body = one.ask(wire.chat(stream=True), *OPT_IN).body
        assert body.endswith(b"data: [DONE]\n\n")
        *_, last = _documents(body)
        assert last["choices"] == []
        found = last["x_turnout"]["session"]
        assert (found["calls"], found["tokens_in"], found["tokens_out"]) == (calls, 3 * calls, 2 * calls)


def test_both_dialects_tell(router: Any, script_engine: Any, wire: Any) -> None:
    body: dict[str, Any] = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "model-a",
        "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "hi"}],
        "usage": {"input_tokens": 4, "output_tokens": 2},
    }
    start: dict[str, Any] = {"type": "message_start", "message": {**body, "content": [], "stop_reason": None}}
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}
    told = [start, {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}, text]
    told += [{"type": "content_block_stop", "index": 0}, end, {"type": "message_stop"}]
    stream = wire.stream(*(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in told))
    one = router(script_engine([wire.answer(json.dumps(body).encode())], stream))
    asked = {"model": "model-a", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    whole = one.ask(asked, *OPT_IN, path=b"/v1/messages")
    found = whole.json["x_turnout"]["session"]
    assert (found["calls"], found["tokens_in"], found["tokens_out"]) == (1, 4, 2)
    lines = one.ask({**asked, "stream": True}, *OPT_IN, path=b"/v1/messages").body
    *_, last, stop = _documents(lines)
    assert (last["type"], stop["type"]) == ("x_turnout", "message_stop")
    assert last["x_turnout"]["session"]["tokens_in"] == 8
