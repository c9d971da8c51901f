"""What the response cache asks of a dialect: whether an answer is whole, and how it reads in the form that is wanted.

Whatever cannot be carried over without loss is not carried over at all: None, and the caller asks an engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from turnout.core.usage import Usage


class Recorded(msgspec.Struct, frozen=True):
    """A whole event stream as it is stored, and what its end says."""

    body: bytes
    finishes: tuple[str, ...]
    tools: bool


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """One dialect's answers, stored and given again."""

    finishes: Callable[[bytes], tuple[tuple[str, ...], bool]]
    """Finish reason of every choice of a whole answer (empty when one has none), and whether any calls a tool."""
    recorded: Callable[[bytes, int], Recorded | None]
    """A relayed stream with this many choices as it is stored; None when it is not whole or not understood."""
    reported: Callable[[bytes, Usage], dict[str, Any]]
    """What is kept beside a recorded stream, because not everybody asks for it: its usage."""
    with_usage: Callable[[bytes, dict[str, Any]], bytes | None]
    """A recorded stream for who asks for its usage."""
    as_events: Callable[[bytes, bool], bytes | None]
    """A whole answer as a stream, with its usage or without."""
    as_answer: Callable[[bytes, dict[str, Any]], bytes | None]
    """A recorded stream as a whole answer."""
