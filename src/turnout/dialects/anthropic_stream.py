"""The tap on an Anthropic event stream: finds first output, stop reason, usage, errors and `message_stop`.

Most events add to a block, and `is_plain` recognises them by a few searches: every line break of such a payload is one
of its framing, so nothing else can hide in it. Only the others are decoded.
"""

from __future__ import annotations

from typing import Final

import msgspec

from turnout.core.usage import Usage
from turnout.dialects.anthropic_answer import to_usage
from turnout.dialects.anthropic_shapes import SAID, SAID_LOOSELY, Delta, ReportedUsage, Said
from turnout.dialects.event_tap import Event, EventTap, data_of

_DELTA: Final = b"event: content_block_delta\ndata: {"
_LINE_BREAKS_PER_EVENT: Final = 3


class AnthropicTap(EventTap):
    """Reads the events of one stream. `complete` once the engine said why it stopped, and that it did."""

    __slots__ = ("_counts", "_stopped")

    def __init__(self, event_max_bytes: int) -> None:
        super().__init__(event_max_bytes)
        self._stopped = False
        self._counts = ReportedUsage()

    @property
    def complete(self) -> bool:
        """Tell whether the message ended: engines that are killed have been seen to stop without a reason."""
        return self.terminated and self._stopped

    def is_plain(self, payload: bytes) -> int:
        """Recognise events that only add to a block."""
        if not (payload.startswith(_DELTA) and payload.endswith(b"}\n\n")):
            return 0
        events = payload.count(b"\n\n")
        breaks = payload.count(b"\n")
        if breaks != _LINE_BREAKS_PER_EVENT * events or payload.count(_DELTA) != events or b"\r" in payload:
            return 0
        return events

    def inspect(self, raw: bytes) -> Event:
        """Return what one whole event says."""
        data = data_of(raw)
        if data is None:
            return Event(raw)
        if not (data.startswith(b"{") and data.endswith(b"}")):
            self.bad_events += 1
            self.dropped += 1
            return Event(raw, keep=False, bad=True)
        try:
            said = _said(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            self.bad_events += 1
            return Event(raw, bad=True)
        kind = said.type
        if kind == "error" or raw.startswith(b"event: error"):
            return Event(raw, error=data)
        if kind == "message_stop":
            self.terminated = True
            return Event(raw, done=True)
        return Event(raw, output=self._learn(kind, said))

    def _learn(self, kind: str, said: Said) -> bool:
        """Keep what an event tells beside its text; True when it is output."""
        if kind == "content_block_delta":
            return said.delta is not None and _has_text(said.delta)
        if kind == "content_block_start":
            block = said.content_block
            if block is None:
                return False
            is_call = block.type.endswith("tool_use")
            self.tools = self.tools or is_call
            return is_call or bool(block.text)
        if kind == "message_start":
            if said.message is not None and said.message.usage is not None:
                self._count(said.message.usage, ended=False)
        elif kind == "message_delta":
            if said.usage is not None:
                self._count(said.usage, ended=True)
            if said.delta is not None and said.delta.stop_reason:
                self._stopped = True
                return True
        return False

    def _count(self, seen: ReportedUsage, *, ended: bool) -> None:
        """Take counts that were not told before, or are told anew: they are sums, never additions."""
        counts = self._counts
        if seen.input_tokens is not None:
            counts.input_tokens = seen.input_tokens
        if seen.cache_read_input_tokens is not None:
            counts.cache_read_input_tokens = seen.cache_read_input_tokens
        if seen.cache_creation_input_tokens is not None:
            counts.cache_creation_input_tokens = seen.cache_creation_input_tokens
        if seen.output_tokens is not None and ended:  # at the start there is nothing to count yet
            counts.output_tokens = seen.output_tokens
        usage: Usage | None = to_usage(counts)
        self.usage = usage


def _has_text(delta: Delta) -> bool:
    return bool(delta.text or delta.thinking or delta.partial_json)


def _said(data: bytes) -> Said:
    """Decode one event; of shapes that engines invent only the type is read.

    Raises:
        msgspec.DecodeError: not JSON, or without a readable type.

    """
    try:
        return SAID.decode(data)
    except msgspec.ValidationError:
        return Said(type=SAID_LOOSELY.decode(data).type)
