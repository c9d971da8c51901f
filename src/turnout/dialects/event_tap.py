"""Cutting a stream into its events, whatever dialect they speak: partial and oversized ones, dropped and bad ones.

A tap counts what it saw. What an event means is each dialect's own business: it overrides `is_plain`, `inspect` and
`complete`.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from turnout.core.usage import Usage

_END_OF_EVENT: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
TOKENS_MAX: Final = 2**40
"""More tokens than this in one answer are no count."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """What one event says. `keep` False: the client does not get it."""

    raw: bytes
    output: bool = False
    keep: bool = True
    done: bool = False
    error: bytes | None = None
    bad: bool = False


class EventTap:
    """Reads the events of one stream; each dialect has its own kind."""

    __slots__ = (
        "_event_max",
        "_oversized",
        "bad_events",
        "dropped",
        "inspected",
        "oversized",
        "partial",
        "terminated",
        "tools",
        "usage",
    )

    def __init__(self, event_max_bytes: int) -> None:
        self._event_max = event_max_bytes
        self._oversized = False
        self.partial = b""
        self.usage: Usage | None = None
        self.terminated = False
        self.tools = False
        self.bad_events = 0
        self.inspected = self.oversized = self.dropped = 0

    @property
    def complete(self) -> bool:
        """Tell whether an engine ended its answer."""
        return self.terminated

    def is_plain(self, payload: bytes) -> int:
        """Return how many events the payload is whole of, when they hold nothing but more output; else 0."""
        del payload
        return 0

    def feed(self, payload: bytes) -> list[Event]:
        """Take payload and return the whole events in it; the rest is kept, up to `event_max_bytes`."""
        data = self.partial + payload if self.partial else payload
        events: list[Event] = []
        at = 0
        while (end := _next_end(data, at)) is not None:
            raw = data[at:end]
            at = end
            if self._oversized:  # its beginning is relayed already: it was never inspected
                self._oversized = False
                events.append(Event(raw))
            elif not self.terminated:
                events.append(self.inspect(raw))
        rest = data[at:]
        self.inspected += len(events)
        if len(rest) > self._event_max:
            self.oversized += not self._oversized
            self._oversized = True
            events.append(Event(rest))
            rest = b""
        self.partial = rest
        return events

    def inspect(self, raw: bytes) -> Event:
        """Return what one whole event says."""
        raise NotImplementedError(raw)


def _next_end(data: bytes, at: int) -> int | None:
    end = data.find(b"\n\n", at)
    if b"\r" in data:
        match = _END_OF_EVENT.search(data, at)
        return match.end() if match is not None else None
    return end + 2 if end >= 0 else None


def data_of(raw: bytes) -> bytes | None:
    """Return the joined data lines of an event; None for comments and events without data."""
    lines = [line[5:].removeprefix(b" ") for line in _LINE_END.split(raw) if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
