"""Any re-chunking of a stream gives the same events, and plain payload is only what says nothing but output."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.dialects.event_tap import Event
from turnout.dialects.openai_stream import StreamTap

TEXT = st.text(max_size=8) | st.sampled_from(
    ["\n\n", "data: ", "[DONE]", '"finish_reason":null', "}\n\ndata: {", '"usage":{', '"error"']
)
DELTA = st.fixed_dictionaries(
    {}, optional={"content": TEXT | st.none(), "role": st.just("assistant"), "tool_calls": st.just([{"index": 0}])}
)
CHOICE = st.fixed_dictionaries(
    {"index": st.integers(0, 1), "delta": DELTA}, optional={"finish_reason": st.sampled_from([None, None, "stop", ""])}
)
CHUNK = st.fixed_dictionaries(
    {"choices": st.lists(CHOICE, max_size=2)},
    optional={
        "usage": st.sampled_from([None, {"prompt_tokens": 1, "completion_tokens": 1}]),
        "error": st.sampled_from([None, {"code": 5}]),
    },
)
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": ")])
EVENT = st.one_of(
    st.builds(lambda c, s: b"data: " + json.dumps(c, separators=s).encode() + b"\n\n", CHUNK, SEPARATORS),
    st.builds(lambda c: b"data: " + json.dumps(c).encode() + b"\r\n\r\n", CHUNK),
    st.sampled_from(
        [b": c\n\n", b"data: [DONE]\n\n", b"data: oops\n\n", b"event: x\ndata: {}\n\n", b"data: {bad}\n\n", b"\n\n"]
    ),
)


def fed(pieces: list[bytes], *, event_max_bytes: int = 10_000) -> tuple[list[Event], StreamTap]:
    tap = StreamTap(2, wants_usage=False, event_max_bytes=event_max_bytes)
    return [event for piece in pieces for event in tap.feed(piece)], tap


def state(tap: StreamTap) -> tuple[object, ...]:
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


@settings(max_examples=50, deadline=None)
@given(st.lists(EVENT, max_size=5))
def test_byte_by_byte_gives_the_same_events(events: list[bytes]) -> None:
    raw = b"".join(events)
    assert fed([raw[i : i + 1] for i in range(len(raw))])[0] == fed([raw])[0]


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENT, min_size=1, max_size=4))
def test_plain_payload_holds_nothing_that_a_tap_must_know(events: list[bytes]) -> None:
    raw = b"".join(events)
    seen, tap = fed([raw])
    if StreamTap(2, wants_usage=False, event_max_bytes=10_000).is_plain(raw):
        assert all(event.keep and not event.done and event.error is None for event in seen)
        assert not tap.complete
        assert tap.usage is None
        assert tap.partial == b""


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 50))
def test_garbage_gives_values_and_is_bounded(raw: bytes, event_max_bytes: int) -> None:
    _, tap = fed([raw[at : at + 7] for at in range(0, len(raw), 7)], event_max_bytes=event_max_bytes)
    assert len(tap.partial) <= event_max_bytes


ALIKE = (
    'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n',
    'data: {"id":"c","choices":[{"index":0,"delta":{"reasoning_content":"%s"},"finish_reason":null}]}\n\n',
    'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":"stop"}]}\n\n',
    'data: {"id":"d","choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}],"usage":{"x":1}}\n\n',
)
INSIDE = TEXT | st.sampled_from(
    [
        "\n",
        '"',
        '\\"',
        '\\\\"},"finish_reason":null}]}\n\n',
        '"},"finish_reason":null}]}\n\ndata: {"id":"c","choices":[{"index":0,"delta":{"content":"',
    ]
)
PAYLOAD = st.lists(st.tuples(st.sampled_from(ALIKE[:1] * 4 + ALIKE), INSIDE), min_size=1, max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.lists(PAYLOAD, max_size=12))
def test_a_tap_that_has_seen_events_calls_plain_what_a_new_one_does(payloads: list[list[tuple[str, str]]]) -> None:
    experienced = StreamTap(1, wants_usage=False, event_max_bytes=10_000)
    for payload in payloads:
        raw = "".join(shape % text for shape, text in payload).encode(errors="replace")
        fresh = StreamTap(1, wants_usage=False, event_max_bytes=10_000)
        assert experienced.is_plain(raw) == fresh.is_plain(raw)
