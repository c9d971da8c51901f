"""Stored messages in another form: lossless there and back, and None wherever something would be lost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from turnout.core.usage import Usage
from turnout.dialects.anthropic_replay import REPLAY

USAGE = {"input_tokens": 3, "cache_read_input_tokens": 0, "output_tokens": 2}
TEXT = {"type": "text", "text": "hello\n\nevent: message_stop\n\n"}
CALL = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1, "b": [1.5, None]}}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s=="}


def message(*blocks: dict[str, Any], stop: str | None = "end_turn", **more: Any) -> dict[str, Any]:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": list(blocks)}
    return {**head, "stop_reason": stop, "stop_sequence": None, "usage": USAGE, **more}


def said(*documents: dict[str, Any]) -> bytes:
    return b"".join([b"event: %b\ndata: %b\n\n" % (d["type"].encode(), msgspec.json.encode(d)) for d in documents])


WHOLE = [
    message(TEXT),
    message({"type": "text", "text": ""}, stop="max_tokens"),
    message({**TEXT, "citations": None}),
    message(THOUGHT, TEXT, CALL, {**CALL, "id": "t2", "input": {}}, stop="tool_use"),
    message(TEXT, stop="stop_sequence", novelty={"kept": [1]}),
]


@pytest.mark.parametrize("document", WHOLE)
def test_whole_to_stream_to_whole_keeps_all_values(document: dict[str, Any]) -> None:
    raw = msgspec.json.encode(document)
    assert REPLAY.finishes(raw) == ((document["stop_reason"],), document["stop_reason"] == "tool_use")
    events = REPLAY.as_events(raw, False)
    assert events is not None
    assert events == REPLAY.as_events(raw, True)
    found = REPLAY.recorded(events, 1)
    assert found is not None
    assert (found.body, found.finishes, found.tools) == (events, *REPLAY.finishes(raw))
    assert REPLAY.reported(events, Usage(3, 2)) == {}
    assert REPLAY.with_usage(found.body, {}) == events
    back = REPLAY.as_answer(found.body, {})
    assert back is not None
    assert msgspec.json.decode(back) == document


def begun(*events: dict[str, Any]) -> bytes:
    start = {"type": "message_start", "message": {**message(), "stop_reason": None, "usage": {"input_tokens": 3}}}
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    end = {"type": "message_delta", "delta": delta, "usage": {"input_tokens": None, "output_tokens": 2}}
    return said(start, {"type": "ping"}, *events, end, {"type": "message_stop"})


def test_deltas_are_put_together_and_late_counts_win() -> None:
    parts = ['{"a"', ':"ü', '"}']
    stream = begun(
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *[{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": t}} for t in ("h", "i")],
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {**CALL, "input": {}}},
        *[
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": part}}
            for part in parts
        ],
    )
    found = REPLAY.recorded(stream, 1)
    assert found is not None
    assert found.tools
    whole = REPLAY.as_answer(found.body, {})
    assert whole is not None
    document = msgspec.json.decode(whole)
    assert document["content"] == [{"type": "text", "text": "hi"}, {**CALL, "input": {"a": "ü"}}]
    assert (document["stop_reason"], document["usage"]) == ("end_turn", {"input_tokens": 3, "output_tokens": 2})


def test_a_stream_that_is_cut_anywhere_is_not_recorded() -> None:
    events = REPLAY.as_events(msgspec.json.encode(WHOLE[3]), False)
    assert events is not None
    for size in range(len(events)):
        assert REPLAY.recorded(events[:size], 1) is None
    start, stop = {"type": "message_start", "message": message()}, {"type": "message_stop"}
    no_reason = {"type": "message_delta", "delta": {"stop_reason": None}}
    paused = {"type": "message_delta", "delta": {"stop_reason": "pause_turn"}}
    for bad in (
        (start, stop),
        (start, no_reason, stop),
        (start, paused, stop),
        (stop,),
        (start, {"type": "error"}, stop),
    ):
        assert REPLAY.recorded(said(*bad), 1) is None
    assert REPLAY.recorded(b"data: x\n\n", 1) is None
    assert REPLAY.recorded(b"event: message_stop\n\n", 1) is None


def test_a_keep_alive_comment_is_no_event() -> None:
    stream = b": hello\n\n" + begun()
    assert REPLAY.recorded(stream, 1) is not None


@pytest.mark.parametrize(
    "block",
    [
        {**TEXT, "citations": [{"type": "char_location"}]},
        {**TEXT, "novelty": 1},
        {"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}},
        {"type": "text", "text": None},
        {**CALL, "input": "x"},
        {"type": "thinking", "thinking": 1},
    ],
)
def test_what_would_be_lost_is_not_converted(block: dict[str, Any]) -> None:
    assert REPLAY.as_events(msgspec.json.encode(message(block)), False) is None


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"type":"error"}', msgspec.json.encode(message(TEXT, stop=None))])
def test_what_is_no_whole_message_has_no_finish(body: bytes) -> None:
    assert REPLAY.finishes(body)[0] == ()
    assert REPLAY.as_events(body, False) is None
    assert REPLAY.as_answer(body, {}) is None


@pytest.mark.parametrize(
    "event",
    [
        {"type": "novelty"},
        {"type": "content_block_start", "index": 5, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 3, "delta": {"type": "text_delta", "text": "x"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "x"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": {}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 1}},
        {"type": "content_block_delta", "index": 0},
    ],
)
def test_events_that_cannot_be_added_are_not_converted(event: dict[str, Any]) -> None:
    first = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert REPLAY.as_answer(begun(first, event), {}) is None


def test_a_call_whose_input_is_cut_is_not_converted() -> None:
    first = {"type": "content_block_start", "index": 0, "content_block": {**CALL, "input": {}}}
    part = {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"a":'}}
    assert REPLAY.as_answer(begun(first, part), {}) is None
