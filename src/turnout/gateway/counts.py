"""What relaying cost beyond passing bytes on: plain integers, added up once per response and read at scrape time."""

from __future__ import annotations

from turnout.dialects.event_tap import EventTap


class RelayCounts:
    """Events looked into, events too large to be, events dropped, and comments sent to waiting clients."""

    __slots__ = ("dropped", "inspected", "keepalives", "oversized")

    def __init__(self) -> None:
        self.inspected = self.oversized = self.dropped = self.keepalives = 0

    def add(self, tap: EventTap) -> None:
        """Count what one stream had; its tap reads nothing after that."""
        self.inspected += tap.inspected
        self.oversized += tap.oversized
        self.dropped += tap.dropped
