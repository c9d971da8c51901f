"""What one round of the event loop writes goes to the kernel together, at the end of the round.

A write wakes whoever waits for the bytes, and where that is a process on another core, waking it is the dearest part of
the system call. One write after the other, with nothing computed in between, wakes it once for many: a small request
takes 40 % less processor time at full load (benchmarks/RESULTS.md). A round of one event writes as soon as before.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol
from weakref import WeakKeyDictionary

# Who comes first waits for the computations of those behind: enough writes, or bytes, end the wait early.
WRITES_MAX: Final = 32
BYTES_MAX: Final = 262_144


class Transport(Protocol):
    """The part of a transport that is needed here."""

    def write(self, data: bytes) -> None:
        """Send, or buffer what the kernel does not take."""

    def is_closing(self) -> bool:
        """Tell whether it is closed, or closes."""


class Outbox:
    """The unsent bytes of one event loop's current round. `flush` must precede whatever closes a transport."""

    __slots__ = ("_bytes", "_due", "_writes")

    def __init__(self) -> None:
        self._writes: list[tuple[Transport, bytes]] = []
        self._bytes = 0
        self._due = False

    def write(self, transport: Transport, data: bytes) -> None:
        """Send these bytes before the round ends, in the order of the calls."""
        writes = self._writes
        writes.append((transport, data))
        self._bytes += len(data)
        if len(writes) >= WRITES_MAX or self._bytes > BYTES_MAX:
            self.flush()
        elif not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._end_of_round)

    def flush(self) -> None:
        """Send now."""
        writes = self._writes
        if not writes:
            return
        self._writes = []  # a write may pause somebody, who writes in turn
        self._bytes = 0
        for transport, data in writes:
            if not transport.is_closing():
                transport.write(data)

    def _end_of_round(self) -> None:
        self._due = False
        self.flush()


_outboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = WeakKeyDictionary()


def running_outbox() -> Outbox:
    """Return the outbox of the running event loop."""
    loop = asyncio.get_running_loop()
    outbox = _outboxes.get(loop)
    if outbox is None:
        outbox = _outboxes[loop] = Outbox()
    return outbox
