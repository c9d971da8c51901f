"""What the tap reads out of an event stream, and what it leaves alone (request-path §9 U3, U4, §11 W5, W6)."""

from __future__ import annotations

import json

import pytest

from turnout.core.usage import Usage
from turnout.dialects.event_tap import Event
from turnout.dialects.openai_stream import StreamTap, answer_usage


def event(delta: object = None, finish: object = None, index: int = 0, **members: object) -> bytes:
    document = {"choices": [{"index": index, "delta": delta or {}, "finish_reason": finish}], **members}
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def data(document: object) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def tap(choices_n: int = 1, *, wants_usage: bool = False, event_max_bytes: int = 1_000_000) -> StreamTap:
    return StreamTap(choices_n, wants_usage=wants_usage, event_max_bytes=event_max_bytes)


def only(raw: bytes) -> Event:
    (seen,) = tap().feed(raw)
    return seen


OUTPUTS = [
    {"content": "x"}, {"reasoning_content": "x"}, {"reasoning": "x"}, {"refusal": "x"}, {"tool_calls": [{"index": 0, "function": {"name": "f"}}]},
    {"function_call": {"name": "f"}}, {"content": [{"type": "text", "text": "x"}]}, {"role": "assistant", "content": "x", "extra": 1e300},
]  # fmt: skip


@pytest.mark.parametrize("delta", OUTPUTS)
def test_output_events_are_those_that_show_something(delta: object) -> None:
    seen = only(event(delta))
    assert (seen.output, seen.keep, seen.bad, seen.error) == (True, True, False, None)


@pytest.mark.parametrize(
    "delta",
    [
        {},
        {"role": "assistant"},
        {"content": ""},
        {"content": None},
        {"tool_calls": []},
        {"tool_calls": None},
        {"function_call": None},
        {"role": "assistant", "content": "", "refusal": None},
    ],
)
def test_role_and_empty_deltas_are_no_output(delta: object) -> None:
    assert only(event(delta)).output is False


def test_completions_show_text() -> None:
    assert only(data({"choices": [{"index": 0, "text": "x", "finish_reason": None}]})).output is True
    assert only(data({"choices": [{"index": 0, "text": "", "finish_reason": None}]})).output is False


@pytest.mark.parametrize(
    "error", [{"message": "x"}, {"message": "x", "code": 503, "type": None}, "overloaded", {}, ["x"]]
)
def test_an_error_inside_the_stream_is_seen_as_one(error: object) -> None:
    document = {"error": error}
    assert only(data(document)).error == json.dumps(document, separators=(",", ":")).encode()


def test_a_null_error_is_none() -> None:
    seen = only(event({"content": "x"}, error=None))
    assert (seen.error, seen.output) == (None, True)


@pytest.mark.parametrize("error", [{"message": "x"}, "overloaded", {}])
def test_an_error_inside_a_whole_answer_is_seen_as_one(error: object) -> None:
    assert answer_usage(json.dumps({"error": error}).encode()) == (None, True)
    assert answer_usage(json.dumps({"error": error, "usage": {"prompt_tokens": "x"}}).encode()) == (None, True)


def test_a_whole_answer_without_error_has_usage() -> None:
    assert answer_usage(b'{"error":null,"usage":{"prompt_tokens":3,"completion_tokens":4}}') == (Usage(3, 4), False)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": -1},
        {"prompt_tokens": 10**15},
        {"prompt_tokens": 10**30},
        {"prompt_tokens": "3"},
        {"prompt_tokens": 1.5},
        [],
        "x",
    ],
)
def test_U4_missing_negative_or_absurd_usage_is_unknown(usage: object) -> None:
    assert answer_usage(json.dumps({"usage": usage}).encode()) == (None, False)
    stream = tap()
    stream.feed(event({"content": "x"}) + event(finish="stop") + data({"choices": [], "usage": usage}))
    assert (stream.usage, stream.complete) == (None, True)


@pytest.mark.parametrize("usage", [{"prompt_tokens": 3, "completion_tokens": 2}, {}, {"prompt_tokens": "odd"}])
def test_U3_the_usage_event_goes_only_to_a_client_that_asked(usage: object) -> None:
    raw = data({"choices": [], "usage": usage})
    assert [seen.keep for seen in tap().feed(raw)] == [False]
    assert [seen.keep for seen in tap(wants_usage=True).feed(raw)] == [True]


@pytest.mark.parametrize(
    "document",
    [
        {"choices": [], "prompt_filter_results": [{"index": 0}]},
        {"choices": [], "usage": None},
        {"id": "x"},
        {"choices": None, "usage": {"prompt_tokens": 1}},
    ],
)
def test_T96_odd_empty_chunks_survive(document: object) -> None:
    assert only(data(document)).keep is True


def test_usage_beside_content_is_kept_and_read() -> None:
    stream = tap()
    seen = stream.feed(event({"content": "x"}, usage={"prompt_tokens": 1, "completion_tokens": 1}))
    assert [e.keep for e in seen] == [True]
    assert stream.usage == Usage(1, 1)


def test_W5_every_choice_needs_its_finish_reason() -> None:
    stream = tap(2)
    stream.feed(event(finish="stop"))
    stream.feed(event(finish="stop"))
    assert not stream.complete
    stream.feed(event(finish="length", index=1))
    assert stream.complete


@pytest.mark.parametrize("finish", [None, ""])
def test_W5_an_empty_finish_reason_ends_nothing(finish: object) -> None:
    stream = tap()
    assert stream.feed(event({"content": ""}, finish))[0].output is False
    assert not stream.complete


def test_W5_events_after_the_terminator_are_dropped() -> None:
    stream = tap()
    assert len(stream.feed(event(finish="stop") + b"data: [DONE]\n\n" + event({"content": "late"}))) == 2
    assert stream.feed(event({"content": "later"})) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"data: oops\n\n",
        b"data: {\n\n",
        b"data: \n\n",
        b"data:\n\n",
        b"data: null\n\n",
        b"data: [1]\n\n",
        b"data: }{\n\n",
        b"data: DONE\n\n",
    ],
)
def test_W6_an_event_that_is_no_object_is_dropped_and_counted(raw: bytes) -> None:
    stream = tap()
    assert [(e.keep, e.bad) for e in stream.feed(raw)] == [(False, True)]
    assert stream.bad_events == 1


@pytest.mark.parametrize(
    "raw", [b": ping\n\n", b":\n\n", b"event: ping\n\n", b"id: 1\nretry: 5\n\n", b"event: other\ndata: {}\n\n", b"\n\n"]
)
def test_W6_comments_and_unknown_events_are_relayed(raw: bytes) -> None:
    seen = only(raw)
    assert (seen.raw, seen.keep, seen.bad, seen.output) == (raw, True, False, False)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_events_end_with_any_line_end(end: bytes) -> None:
    raw = event({"content": "x"}).removesuffix(b"\n\n") + end
    seen = tap().feed(raw + raw)
    assert [(e.raw, e.output) for e in seen] == [(raw, True), (raw, True)]


def test_data_over_several_lines_is_one_value() -> None:
    raw = b'data: {"choices":\ndata:[{"delta":{"content":"x"}}]}\n\n'
    assert only(raw).output is True


def test_L10_an_event_over_the_limit_is_relayed_uninspected_once() -> None:
    stream = tap(event_max_bytes=100)
    large = event({"content": "x" * 300}, "stop")
    small = event({"content": "y"})
    seen = [e for at in range(0, len(large), 50) for e in stream.feed(large[at : at + 50])]
    assert b"".join(e.raw for e in seen) + stream.partial == large
    assert [e.output for e in stream.feed(small)] == [True]


def test_a_tool_call_is_noticed_even_when_only_its_end_is_read() -> None:
    stream = tap()
    stream.feed(event(finish="tool_calls"))
    assert stream.tools


@pytest.mark.parametrize(
    "payload",
    [
        event({"content": "a"}), event({"content": "a"}) * 3, event({"content": '"usage"'}), event({"content": "data: {\n\n"}),
        event({"content": '"finish_reason":"stop"'}), event({"content": "x"}, index=1),
    ],
)  # fmt: skip
def test_plain_payload_is_recognised(payload: bytes) -> None:
    assert tap().is_plain(payload)


@pytest.mark.parametrize(
    "payload",
    [
        event(finish="stop"), event({"content": "a"}) + event(finish="stop"), b"data: [DONE]\n\n", b": ping\n\n", event({"content": "a"})[:-1],
        event({"content": "a"})[1:], event({"content": "a"}) + b"data: {", event(usage={"a": 1}), event(error={"a": 1}), b"",
        b'data: {"choices":[{"finish_reason":null},{"finish_reason":null}]}\n\n' + event({"content": "a"}, "stop"), event({}) + b"data: [DONE]\n\n",
        event({}) + b": c\n\n", b"id: 1\n" + event({}),
    ],
)  # fmt: skip
def test_payload_that_says_more_is_not_plain(payload: bytes) -> None:
    assert not tap().is_plain(payload)
