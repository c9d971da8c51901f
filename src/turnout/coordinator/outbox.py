"""What a peer that does not read fast enough still has to get: bounded by messages and bytes, in order."""

from __future__ import annotations

from collections import deque

from turnout.coordinator.peers import Send


class Outbox:
    """Unsent messages of one peer."""

    __slots__ = ("size_bytes", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Send] = deque()
        self.size_bytes = 0

    def put(self, send: Send) -> None:
        """Append."""
        self.waiting.append(send)
        self.size_bytes += send.size_bytes

    def sent(self) -> None:
        """The first one is away."""
        self.size_bytes -= self.waiting.popleft().size_bytes

    def is_full(self, messages: int, size_bytes: int) -> bool:
        """Say whether a bound is reached."""
        return len(self.waiting) >= messages or self.size_bytes >= size_bytes
