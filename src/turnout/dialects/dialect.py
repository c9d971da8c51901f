"""What the gateway needs to know about a dialect, as one value each, and which path speaks which.

A request carries its dialect's name, and whoever handles it asks the value. Only what the router itself adds, errors
and the event of session totals, is chosen by the name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from turnout.core.request import Request
from turnout.core.types import Refusal
from turnout.core.usage import Usage
from turnout.dialects import (
    anthropic,
    anthropic_answer,
    anthropic_resume,
    openai,
    openai_answer,
    openai_resume,
    openai_stream,
)
from turnout.dialects.anthropic_stream import AnthropicTap
from turnout.dialects.envelope import ApiError, in_band_error
from turnout.dialects.event_tap import EventTap
from turnout.dialects.resume import Resume


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One way of asking and answering."""

    name: str
    decode: Callable[[bytes, bytes, int, str], Refusal | Request]
    """Path, body, most levels of JSON and the default model to a request."""
    tap: Callable[[Request, int], EventTap]
    """A reader for the events of one answer; the number bounds one event's bytes."""
    answer_usage: Callable[[bytes], tuple[Usage | None, bool]]
    """Usage of a whole answer, and whether it is an error."""
    estimated_tokens: Callable[[bytes], int]
    """Tokens of a whole answer that reports none."""
    in_band_error: Callable[[ApiError, str], bytes]
    """The last event of a stream that failed; the string is the request's id."""
    as_events: Callable[[bytes], bytes]
    """A whole answer for a client that was promised a stream."""
    resume: Resume
    """How a broken stream is joined by another one."""
    keepalive: bytes
    """What keeps a waiting client patient."""
    request_id_header: bool = False
    """Whether its clients look for `request-id`."""


OPENAI: Final = Dialect(
    name="openai",
    decode=openai.decode,
    tap=lambda request, event_max_bytes: openai_stream.StreamTap(
        request.n, wants_usage=request.include_usage, event_max_bytes=event_max_bytes
    ),
    answer_usage=openai_stream.answer_usage,
    estimated_tokens=openai_answer.estimated_tokens,
    in_band_error=lambda error, _: in_band_error(error),
    as_events=lambda body: b"data: " + body + b"\n\n",
    resume=openai_resume.RESUME,
    keepalive=b": keep-alive\n\n",
)
ANTHROPIC: Final = Dialect(
    name="anthropic",
    decode=anthropic.decode,
    tap=lambda _, event_max_bytes: AnthropicTap(event_max_bytes),
    answer_usage=anthropic_answer.answer_usage,
    estimated_tokens=anthropic_answer.estimated_tokens,
    in_band_error=anthropic_answer.in_band_error,
    as_events=anthropic_answer.as_events,
    resume=anthropic_resume.RESUME,
    keepalive=anthropic_answer.KEEPALIVE,
    request_id_header=True,
)

DIALECTS: Final[dict[str, Dialect]] = {dialect.name: dialect for dialect in (OPENAI, ANTHROPIC)}
PATHS: Final[dict[bytes, Dialect]] = {
    openai.CHAT: OPENAI,
    openai.COMPLETIONS: OPENAI,
    openai.EMBEDDINGS: OPENAI,
    anthropic.MESSAGES: ANTHROPIC,
    anthropic.COUNT_TOKENS: ANTHROPIC,
}
"""The paths that ask an engine, compared as raw bytes (request-path §1)."""
