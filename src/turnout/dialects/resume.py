"""What joining two streams takes in any dialect: what was sent, what was asked, and a reader of the second.

Everything here happens after a stream broke, so events are decoded and encoded again; nothing is ever invented
(resilience §5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from turnout.core.recovery.prefix_match import PrefixMatch, Span

COMMENT: Final = b": turnout resumed\n\n"


class Sent(msgspec.Struct, frozen=True):
    """What a client has of the first stream."""

    spans: list[Span]
    events: int = 0
    """Events with output: about as many tokens."""
    identity: dict[str, Any] = {}
    """Members that every event of a stream repeats."""
    tool_call: bool = False
    """It has part of something that cannot be compared: nobody can go on from there."""
    reasoning_open: bool = False
    text: str = ""
    """The answer so far, without what was thought aloud."""
    blocks: tuple[str, ...] = ()
    """Kinds of the content blocks that have begun, where a dialect has blocks."""
    open_block: int = -1
    """The one that has not ended; -1 for none."""
    signed: frozenset[int] = frozenset()
    """Blocks whose signature is there."""
    stopped: bool = False
    """Whether it was told why the answer ends."""


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What of a request decides over its rescue."""

    logprobs: bool = False
    structured: bool = False
    chat: bool = True
    """Whether an answer can be had as the continuation of a message."""


class Joiner:
    """Takes the events of the second stream; `failed` once it does not fit the first one."""

    __slots__ = ("failed", "match", "resumed")

    def __init__(self, match: PrefixMatch) -> None:
        self.match = match
        self.failed = False
        self.resumed = False
        """Whether something of the second stream has been shown."""

    def take(self, raw: bytes) -> bytes:
        """What the client gets of one whole event; b"" for nothing, and when `failed`."""
        raise NotImplementedError(raw)


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """How a dialect joins streams."""

    asked: Callable[[bytes], Asked]
    """A request body that has been accepted before."""
    sent: Callable[[bytes], Sent]
    """Whole events that went to a client."""
    joiner: Callable[[Sent, bool], Joiner]
    """A reader of the second stream; True: it continues the first instead of repeating it."""
    continuation_body: Callable[[bytes, Sent], bytes]
    """The request whose answer is the rest."""


def decoded(raw: bytes) -> dict[str, Any] | None:
    """The object of an event; None for comments, the terminator and what is no object."""
    lines = [line[5:].strip() for line in raw.replace(b"\r", b"\n").split(b"\n") if line.startswith(b"data:")]
    data = b"\n".join(lines)
    if not data.startswith(b"{"):
        return None
    try:
        chunk = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return chunk if isinstance(chunk, dict) else None
