"""Stored chat answers in another form: lossless there and back, and None wherever something would be lost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from turnout.dialects.openai_replay import as_answer, as_events, recorded, usage_of, with_usage

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
    {"id": "c2", "type": "function", "function": {"name": "sub", "arguments": ""}},
]


def answer(*messages: dict[str, Any], finish: str = "stop", **choice: Any) -> dict[str, Any]:
    choices = [
        {"index": at, "message": {"role": "assistant", "content": None, **message}, "logprobs": None, **choice}
        | {"finish_reason": finish}
        for at, message in enumerate(messages)
    ]
    head = {"id": "x", "created": 7, "model": "m", "object": "chat.completion"}
    return {**head, "choices": choices, "usage": USAGE}


WHOLE = [
    answer({"content": "hello\n\ndata: [DONE]\n\n"}),
    answer({"content": ""}),
    answer({"tool_calls": CALLS}, finish="tool_calls"),
    answer({"content": "a", "reasoning_content": "hm"}, {"content": "b", "refusal": "no"}, finish="length"),
]


@pytest.mark.parametrize("document", WHOLE)
def test_whole_to_stream_to_whole_keeps_all_values(document: dict[str, Any]) -> None:
    raw = msgspec.json.encode(document)
    events = as_events(raw, usage=True)
    assert events is not None
    assert events.endswith(DONE)
    found = recorded(events, len(document["choices"]))
    assert found is not None
    assert usage_of(events) == usage_of(raw) == USAGE
    assert usage_of(found.body) is None
    back = as_answer(found.body, USAGE)
    assert back is not None
    assert msgspec.json.decode(back) == document
    again = with_usage(found.body, USAGE)
    assert again is not None
    assert usage_of(again) == USAGE
    assert recorded(again, len(document["choices"])) == found
    assert as_events(raw, usage=False) == found.body
    assert set(found.finishes) == {document["choices"][0]["finish_reason"]}
    assert found.tools == (found.finishes == ("tool_calls",))


def test_a_completion_keeps_all_values_too() -> None:
    choices = [{"index": at, "text": text, "logprobs": None, "finish_reason": "stop"} for at, text in enumerate("ab")]
    head = {"id": "x", "created": 7, "model": "m", "object": "text_completion"}
    document = {**head, "choices": choices, "usage": USAGE}
    events = as_events(msgspec.json.encode(document), usage=True)
    assert events is not None
    found = recorded(events, 2)
    assert found is not None
    assert (found.finishes, found.tools) == (("stop", "stop"), False)
    back = as_answer(found.body, USAGE)
    assert back is not None
    assert msgspec.json.decode(back) == document
    for bad in ({"logprobs": {"tokens": ["a"]}}, {"novelty": 1}, {"text": None}):
        lossy = {**document, "choices": [{**choices[0], **bad}]}
        assert as_events(msgspec.json.encode(lossy), usage=False) is None
        chunk = b"data: " + msgspec.json.encode({**head, "choices": lossy["choices"]}) + b"\n\n" + DONE
        assert as_answer(chunk, USAGE) is None


def event(**members: Any) -> bytes:
    return b"data: " + msgspec.json.encode({"id": "x", "object": "chat.completion.chunk", **members}) + b"\n\n"


def test_arguments_in_parts_are_put_together() -> None:
    parts: list[dict[str, Any]] = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ":1}"}},
    ]
    stream = b"".join(event(choices=[{"index": 0, "delta": {"tool_calls": [part]}}]) for part in parts)
    stream += b": ping\n\n" + event(choices=[{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]) + DONE
    found = recorded(stream)
    assert found is not None
    assert found.tools
    whole = as_answer(found.body, USAGE)
    assert whole is not None
    [call] = msgspec.json.decode(whole)["choices"][0]["message"]["tool_calls"]
    assert call == {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def test_a_stream_that_is_cut_anywhere_is_not_recorded() -> None:
    events = as_events(msgspec.json.encode(WHOLE[0]), usage=True)
    assert events is not None
    for size in range(len(events)):
        assert recorded(events[:size]) is None
    assert recorded(events, choices_n=2) is None
    assert recorded(event(choices=[{"index": 0, "delta": {"content": "x"}}]) + DONE) is None
    assert recorded(event(error={"message": "no"}) + DONE) is None
    assert recorded(b"data: x\n\n" + DONE) is None
    assert recorded(DONE) is None


LOSSY: list[dict[str, Any]] = [
    answer({"content": "x"}, logprobs={"content": [{"token": "x"}]}),
    answer({"content": "x", "audio": {"id": "a"}}),
    answer({"content": "x", "novelty": 1}),
    answer({"content": "x"}, novelty=1),
    {**answer({"content": "x"}), "object": "text_completion"},
    {**answer({"content": "x"}), "choices": []},
]


@pytest.mark.parametrize("document", LOSSY)
def test_what_would_be_lost_is_not_converted(document: dict[str, Any]) -> None:
    assert as_events(msgspec.json.encode(document), usage=False) is None


@pytest.mark.parametrize(
    "delta", [{"novelty": 1}, {"content": 1}, {"tool_calls": [{"index": 3, "id": "x"}]}, {"tool_calls": ["x"]}]
)
def test_deltas_that_cannot_be_added_are_not_converted(delta: dict[str, Any]) -> None:
    stream = event(choices=[{"index": 0, "delta": delta, "finish_reason": "stop"}]) + DONE
    assert as_answer(stream, USAGE) is None
    assert as_events(b"{", usage=True) is None
    assert as_answer(b"data: x\n\n", USAGE) is None
    assert with_usage(b"x", USAGE) is None
