"""The last event of a stream, which carries usage, survives any split of the bytes (traps T36)."""

from __future__ import annotations

import json

import pytest

from turnout.core.usage import Usage
from turnout.dialects.openai_stream import StreamTap

USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def data(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


ENDINGS = {
    "usage, done": data({"choices": [], "usage": USAGE}) + b"data: [DONE]\n\n",
    "usage without done": data({"choices": [], "usage": USAGE}),
    "usage beside the finish reason": data({"choices": [{"index": 0, "finish_reason": "stop"}], "usage": USAGE}),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_final_event_is_never_cut(ending: bytes) -> None:
    """T36: any byte split gives the same usage and the same bytes."""
    stream = data({"choices": [{"index": 0, "delta": {"content": "é"}}]})
    stream += data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + ending
    for first in range(len(stream) + 1):
        for second in (first, (first + len(stream)) // 2, len(stream) - 1):
            tap = StreamTap(1, wants_usage=True, event_max_bytes=10_000)
            pieces = (stream[:first], stream[first : max(first, second)], stream[max(first, second) :])
            events = [event for piece in pieces if piece for event in tap.feed(piece)]
            assert tap.usage == Usage(11, 7, 5, 3)
            assert tap.complete
            assert b"".join(event.raw for event in events) == stream
