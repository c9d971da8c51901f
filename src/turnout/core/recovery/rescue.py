"""Whether a stream that broke after its first byte may be joined by another one, and how (resilience R1 to R4).

The order is continuation, prefix-match, error. A continuation costs the engine less but trusts it; a prefix-match runs
the request again and proves itself, which only a request that repeats itself can.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from turnout.core.errors import ErrorKind
from turnout.core.options import Resume

BROKEN: Final = frozenset(
    (
        ErrorKind.STREAM_CUT,
        ErrorKind.TIMEOUT_STALL,
        ErrorKind.CONNECTION_RESET,
        ErrorKind.BAD_RESPONSE,
        ErrorKind.OVERLOADED,
        ErrorKind.SERVER_ERROR,
        ErrorKind.RATE_LIMIT,
        ErrorKind.ENDPOINT_GONE,
    )
)
"""Endings of a committed attempt that a sibling may mend. What the client or the request caused is not among them."""


class Way(enum.StrEnum):
    """How the rest of an answer is had."""

    CONTINUATION = "continuation"
    PREFIX_MATCH = "prefix_match"


class Broken(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What is known about a request and the part of its answer that was sent."""

    choices: int = 1
    deterministic: bool = False
    logprobs: bool = False
    structured: bool = False
    """`response_format` or guided fields: a continuation would begin its grammar anew."""
    tool_call_opened: bool = False
    reasoning_open: bool = False
    """The answer was still thinking aloud."""
    kept: bool = True
    """Everything that was sent is still at hand."""
    chat: bool = True
    rescued_before: bool = False


def ways(broken: Broken, options: Resume, *, continuation: bool) -> tuple[Way, ...]:
    """The ways to try at one endpoint, in order; empty: the client has to be told.

    Args:
        broken: the request and what was sent of its answer.
        options: the section `resume`.
        continuation: whether the endpoint continues assistant messages.

    """
    if options.scope == "off" or broken.rescued_before or not broken.kept:
        return ()
    if broken.choices > 1 or broken.tool_call_opened or broken.logprobs:
        return ()
    found: list[Way] = []
    if continuation and broken.chat and not broken.structured and not broken.reasoning_open:
        found.append(Way.CONTINUATION)
    if broken.deterministic or not options.require_deterministic:
        found.append(Way.PREFIX_MATCH)
    return tuple(found)
