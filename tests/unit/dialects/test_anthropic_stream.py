"""The tap on Anthropic streams, and whole answers of that dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turnout.core.errors import ENDINGS, ErrorKind, Outcome
from turnout.core.usage import Usage
from turnout.dialects.anthropic_answer import answer_usage, as_events, estimated_tokens, in_band_error
from turnout.dialects.anthropic_stream import AnthropicTap
from turnout.dialects.dialect import DIALECTS, PATHS
from turnout.dialects.envelope import dialect_of, of_outcome
from turnout.dialects.openai_answer import classify


def said(kind: str, **members: Any) -> bytes:
    document = json.dumps({"type": kind, **members}, separators=(",", ":"))
    return f"event: {kind}\ndata: {document}\n\n".encode()


def start(**usage: int) -> bytes:
    return said("message_start", message={"id": "m", "content": [], "usage": usage})


def delta(index: int = 0, **members: Any) -> bytes:
    return said("content_block_delta", index=index, delta=members)


def stopped(reason: Any = "end_turn", **usage: Any) -> bytes:
    return said("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage)


TEXT = delta(type="text_delta", text="a")
STOP = said("message_stop")


def tapped(*events: bytes, event_max_bytes: int = 10_000) -> tuple[AnthropicTap, list[bool]]:
    tap = AnthropicTap(event_max_bytes)
    return tap, [event.output for event in tap.feed(b"".join(events))]


@pytest.mark.parametrize(
    ("event", "output"),
    [
        (start(input_tokens=1), False), (said("ping"), False), (TEXT, True), (delta(type="text_delta", text=""), False),
        (delta(type="thinking_delta", thinking="hm"), True), (delta(type="input_json_delta", partial_json="{"), True),
        (delta(type="signature_delta", signature="s"), False), (said("content_block_stop", index=0), False),
        (said("content_block_start", index=0, content_block={"type": "text", "text": ""}), False),
        (said("content_block_start", index=0, content_block={"type": "text", "text": "a"}), True),
        (said("content_block_start", index=0, content_block={"type": "tool_use", "id": "t", "name": "n", "input": {}}), True),
        (stopped(), True), (stopped(None), False), (STOP, False), (b": comment\n\n", False), (said("something_new", x=1), False),
    ],
)  # fmt: skip
def test_first_output(event: bytes, output: bool) -> None:  # noqa: FBT001 - a parameter
    assert tapped(event)[1] == [output]


def test_a_message_is_complete_with_its_reason_and_its_stop() -> None:
    tap, _ = tapped(start(), TEXT, stopped())
    assert not tap.complete
    (last,) = tap.feed(STOP)
    assert last.done
    assert (tap.complete, tap.terminated) == (True, True)
    assert tap.feed(b"data: [DONE]\n\n") == []  # older vLLM says both


@pytest.mark.parametrize("events", [[STOP], [stopped(None), STOP], [stopped("")], [TEXT]])
def test_anything_else_is_no_end(events: list[bytes]) -> None:
    assert not tapped(start(), TEXT, *events)[0].complete


@pytest.mark.parametrize(
    ("begun", "ended", "usage"),
    [
        ({"input_tokens": 9, "output_tokens": 1}, {"output_tokens": 5}, Usage(9, 5)),
        ({"input_tokens": 9}, {"input_tokens": 10, "output_tokens": 5}, Usage(10, 5)),
        ({"input_tokens": 2, "cache_read_input_tokens": 7, "cache_creation_input_tokens": 1}, {"output_tokens": 5}, Usage(10, 5, 7, None, 1)),
        ({"input_tokens": 10}, {"input_tokens": 3, "cache_read_input_tokens": 7, "output_tokens": 5}, Usage(10, 5, 7)),
        ({"input_tokens": 10}, {"cache_read_input_tokens": 0, "output_tokens": 5}, Usage(10, 5)),
        ({"input_tokens": 10}, {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "output_tokens": 5}, Usage(10, 5, 0, None, 0)),
        ({"input_tokens": 10}, {"output_tokens": -1}, None),
        ({"input_tokens": 2**41}, {"output_tokens": 1}, None),
        ({"input_tokens": 10, "output_tokens": 1}, {}, Usage(10)),
    ],
)  # fmt: skip
def test_usage_is_put_together(begun: dict[str, int], ended: dict[str, int], usage: Usage | None) -> None:
    assert tapped(start(**begun), TEXT, stopped(**ended), STOP)[0].usage == usage


def test_calls_are_noticed() -> None:
    for kind in ("tool_use", "server_tool_use"):
        assert tapped(said("content_block_start", index=0, content_block={"type": kind, "name": "n"}))[0].tools
    assert not tapped(TEXT)[0].tools


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (said("error", error={"type": "overloaded_error", "message": "m"}), ErrorKind.OVERLOADED),
        (said("error", error={"type": "rate_limit_error", "message": "m"}), ErrorKind.RATE_LIMIT),
        (said("error", error={"type": "api_error", "message": "m"}), ErrorKind.SERVER_ERROR),
        (said("error", error={"type": "internal_error", "message": "m"}), ErrorKind.SERVER_ERROR),
        (said("error", error={"type": "invalid_request_error", "message": "prompt is too long"}), ErrorKind.CONTEXT_OVERFLOW),
        (b'event: error\ndata: {"message":"odd"}\n\n', ErrorKind.SERVER_ERROR),
        (b'data: {"type":"error","error":{"message":"m"}}\n\n', ErrorKind.SERVER_ERROR),
    ],
)  # fmt: skip
def test_errors_inside_a_stream(event: bytes, kind: ErrorKind) -> None:
    (seen,) = AnthropicTap(10_000).feed(event)
    assert seen.error is not None
    assert classify(200, seen.error, "m") is kind


def test_what_cannot_be_read_is_dropped_or_bad() -> None:
    tap = AnthropicTap(10_000)
    dropped, bad, odd = tap.feed(b"event: x\ndata: oops\n\n" + b"event: x\ndata: {bad}\n\n" + said("ping", delta=5))
    assert (dropped.keep, dropped.bad, bad.keep, bad.bad) == (False, True, True, True)
    assert (odd.bad, odd.keep) == (False, True)
    assert (tap.bad_events, tap.dropped) == (2, 1)


def test_an_oversized_event_is_relayed_without_a_look() -> None:
    tap = AnthropicTap(100)
    big = delta(type="text_delta", text="a" * 500)
    events = tap.feed(big[:400]) + tap.feed(big[400:] + stopped())
    assert b"".join(event.raw for event in events) == big + stopped()
    assert (tap.oversized, events[-1].output) == (1, True)


@pytest.mark.parametrize("payload", [TEXT, TEXT * 3, TEXT + delta(1, type="input_json_delta", partial_json='{"\n"')])
def test_plain_payload_is_recognised(payload: bytes) -> None:
    assert AnthropicTap(10_000).is_plain(payload) == payload.count(b"\n\n")


@pytest.mark.parametrize(
    "payload",
    [
        b"", STOP, stopped(), start(), said("ping"), TEXT[:-1], TEXT[1:], TEXT + STOP, TEXT + said("error", error={}), STOP + TEXT,
        TEXT + b": c\n\n", TEXT + b"\n", b"id: 1\n" + TEXT, TEXT[:-2] + b"\r\n\r\n", TEXT[:-1] + TEXT, TEXT + b"event: content_block_delta\ndata: {",
        b'event: content_block_delta\ndata: {"a":1}\ndata: {"b":1}\n\n', b'event: content_block_delta\ndata: {"a":1}\nevent: error\ndata: {}\n\n',
    ],
)  # fmt: skip
def test_payload_that_says_more_is_not_plain(payload: bytes) -> None:
    assert not AnthropicTap(10_000).is_plain(payload)


# -- whole answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "usage", "is_error"),
    [
        ({"type": "message", "usage": {"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": 7}}, Usage(10, 4, 7), False),
        ({"type": "message", "usage": {"input_tokens": "many"}}, None, False), ({"type": "message"}, None, False),
        ({"input_tokens": 9}, None, False), ({"type": "error", "error": {"type": "api_error"}}, None, True), ({"error": {"code": 500}}, None, True),
    ],
)  # fmt: skip
def test_usage_of_a_whole_answer(body: Any, usage: Usage | None, is_error: bool) -> None:  # noqa: FBT001 - a parameter
    assert answer_usage(json.dumps(body).encode()) == (usage, is_error)


def test_usage_of_what_is_no_answer() -> None:
    assert answer_usage(b"{oops}") == (None, False)
    assert (estimated_tokens(b"{oops}"), estimated_tokens(b"{}")) == (0, 0)


def test_tokens_are_estimated_from_the_text() -> None:
    body = {"content": [{"type": "text", "text": "a" * 40}, {"type": "tool_use", "input": {}}, {"text": "a"}]}
    assert estimated_tokens(json.dumps(body).encode()) == 11


def test_a_whole_answer_as_a_stream_is_a_whole_stream() -> None:
    body: dict[str, Any] = {
        "id": "m", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "hi"}, {"type": "odd", "x": 1}],
        "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 4},
    }  # fmt: skip
    tap, outputs = tapped(as_events(json.dumps(body).encode()))
    assert any(outputs)
    assert (tap.complete, tap.usage) == (True, Usage(3, 4))


def test_the_last_event_of_a_failed_stream() -> None:
    raw = in_band_error(of_outcome(Outcome.STREAM_INTERRUPTED, "why"), "r1")
    first, second, *rest = raw.split(b"\n")
    assert first == b"event: error"
    assert rest == [b"", b""]
    error = json.loads(second.removeprefix(b"data: "))
    assert error == {"type": "error", "error": {"type": "api_error", "message": "why"}, "request_id": "r1"}


# -- the values that the gateway asks ---------------------------------------------------------------------------------


def test_each_path_speaks_the_dialect_in_which_its_errors_are_worded() -> None:
    assert {path: dialect.name for path, dialect in PATHS.items()} == {path: dialect_of(path) for path in PATHS}
    assert {dialect.name for dialect in PATHS.values()} == set(DIALECTS)


def test_every_ending_of_ours_is_an_error_event_that_our_own_tap_knows() -> None:
    dialect = DIALECTS["anthropic"]
    for outcome, ending in ENDINGS.items():
        if ending.type:
            (seen,) = AnthropicTap(10_000).feed(dialect.in_band_error(of_outcome(outcome, "why"), "r1"))
            assert seen.error is not None
            assert json.loads(seen.error)["error"]["type"] == ending.anthropic
