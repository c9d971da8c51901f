"""Any re-chunking gives the same events, plain payload says nothing but output, and prompts grow at their end only."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.core.request import Request
from turnout.core.types import Refusal
from turnout.dialects.anthropic import MESSAGES, decode
from turnout.dialects.anthropic_stream import AnthropicTap
from turnout.dialects.event_tap import Event

TEXT = st.text(max_size=8) | st.sampled_from(
    ["\n\n", "event: ", "message_stop", "}\n\nevent: content_block_delta", '"']
)
DELTA = st.fixed_dictionaries(
    {},
    optional={"text": TEXT, "thinking": TEXT, "partial_json": TEXT, "stop_reason": st.sampled_from([None, "end_turn"])},
)
COUNTS = st.fixed_dictionaries(
    {},
    optional={
        "input_tokens": st.integers(0, 9),
        "output_tokens": st.integers(-1, 9),
        "cache_read_input_tokens": st.none(),
    },
)
KINDS = st.sampled_from(
    [
        *["content_block_delta"] * 4,
        "message_start",
        "content_block_start",
        "message_delta",
        "message_stop",
        "ping",
        "error",
        "x",
    ]
)
SAID = st.fixed_dictionaries({"type": KINDS}, optional={"delta": DELTA, "usage": COUNTS, "index": st.integers(0, 2)})
ENDS = st.sampled_from(["\n\n", "\n\n", "\r\n\r\n"])


def written(document: dict[str, Any], end: str, name: str | None) -> bytes:
    event = document["type"] if name is None else name
    return f"event: {event}{end[: len(end) // 2]}data: {json.dumps(document)}{end}".encode()


EVENT = st.builds(written, SAID, ENDS, st.none() | st.just("content_block_delta")) | st.sampled_from(
    [b": c\n\n", b"data: [DONE]\n\n", b"event: x\ndata: oops\n\n", b"data: {bad}\n\n", b"\n\n"]
)


def fed(pieces: list[bytes], *, event_max_bytes: int = 10_000) -> tuple[list[Event], AnthropicTap]:
    tap = AnthropicTap(event_max_bytes)
    return [event for piece in pieces for event in tap.feed(piece)], tap


def state(tap: AnthropicTap) -> tuple[object, ...]:
    return tap.usage, tap.complete, tap.terminated, tap.tools, tap.bad_events, tap.partial


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENT, max_size=8), st.data())
def test_any_rechunking_gives_the_same_events(events: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    whole, whole_tap = fed([raw])
    rechunked, rechunked_tap = fed(pieces)
    assert rechunked == whole
    assert state(rechunked_tap) == state(whole_tap)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.builds(written, SAID, ENDS, st.none()), min_size=1, max_size=4))
def test_plain_payload_holds_nothing_that_a_tap_must_know(events: list[bytes]) -> None:
    raw = b"".join(events)
    seen, tap = fed([raw])
    if plain := AnthropicTap(10_000).is_plain(raw):
        assert plain == len(seen)
        assert all(event.keep and not event.done and event.error is None for event in seen)
        assert state(tap) == state(AnthropicTap(10_000))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 50))
def test_garbage_gives_values_and_is_bounded(raw: bytes, event_max_bytes: int) -> None:
    _, tap = fed([raw[at : at + 7] for at in range(0, len(raw), 7)], event_max_bytes=event_max_bytes)
    assert len(tap.partial) <= event_max_bytes


BLOCK = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=9)),
    st.builds(lambda text: {"type": "thinking", "thinking": text}, st.text(max_size=9)),
    st.builds(lambda text: {"type": "tool_result", "tool_use_id": "t", "content": text}, st.text(max_size=9)),
    st.just({"type": "tool_use", "id": "t", "name": "n", "input": {"a": [1, "]"]}}),
    st.just({"type": "image", "source": {"data": "x"}}),
    st.just({"type": "odd", "text": 5}),
)
TURN = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "assistant"]),
    st.text(max_size=9) | st.lists(BLOCK, max_size=3),
)


def rendered(turns: list[dict[str, Any]], **members: Any) -> bytes:
    raw = json.dumps({"model": "m", "messages": turns, "max_tokens": 1, **members}).encode("utf-8", "surrogatepass")
    request = decode(MESSAGES, raw, 64)
    assert isinstance(request, Request), request
    assert request.body is raw
    return request.prompt.rendered


@settings(max_examples=100, deadline=None)
@given(st.lists(TURN, min_size=2, max_size=5), st.data())
def test_a_longer_conversation_begins_with_the_shorter_one(turns: list[dict[str, Any]], data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(turns) - 1))
    system = data.draw(st.none() | st.just("be brief") | st.just([{"type": "text", "text": "be brief"}]))
    assert rendered(turns, system=system).startswith(rendered(turns[:at], system=system))


@settings(max_examples=100, deadline=None)
@given(st.lists(TURN, min_size=1, max_size=3), st.integers(0, 300), st.binary(min_size=1, max_size=2))
def test_a_damaged_body_is_read_or_refused_but_never_raises(turns: list[Any], at: int, damage: bytes) -> None:
    raw = json.dumps({"model": "m", "messages": turns, "tools": [], "max_tokens": 1}).encode()
    at = min(at, len(raw))
    assert isinstance(decode(MESSAGES, raw[:at] + damage + raw[at + len(damage) :], 64), Request | Refusal)
