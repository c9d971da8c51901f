"""What the gateway is given from outside: things that count, and time and chance as arguments."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import msgspec

from turnout.core.facts import CallFact
from turnout.core.kit.rng import Rng
from turnout.core.scheduling.decision import Decision


class Counts(Protocol):
    """Something that counts values."""

    def observe(self, value: float) -> None:
        """Count one value."""


class Instruments(Protocol):
    """What the gateway counts; the telemetry shell provides it."""

    @property
    def itl(self) -> Counts:
        """Seconds between output events."""

    @property
    def overhead(self) -> Counts:
        """Seconds of our own up to the response head."""

    def closed(self, fact: CallFact) -> None:
        """Count one closed exchange."""

    def refused(self, code: str) -> None:
        """Count one refusal before the exchange."""

    def decided(self, decision: Decision, seconds: float) -> None:
        """Count a first decision and what it took."""

    def prefix(self, result: str, blocks: int, matched: int) -> None:
        """Count one prefix look-up."""

    def picked(self, endpoint: str) -> None:
        """Count one pick."""


class Sources(msgspec.Struct, frozen=True):
    """Time and chance, as arguments: monotonic seconds, UTC milliseconds, 80 random bits, a seeded generator."""

    clock: Callable[[], float]
    now_ms: Callable[[], int]
    entropy: Callable[[], int]
    rng: Rng


class Entropy:
    """80 random bits at a time from the system, fetched in blocks: a call per request would cost a microsecond."""

    _BLOCK_BYTES, _ID_BYTES = 4000, 10

    def __init__(self) -> None:
        self._block = b""
        self._at = 0

    def __call__(self) -> int:
        """Return the next 80 bits."""
        if self._at >= len(self._block):
            self._block, self._at = os.urandom(self._BLOCK_BYTES), 0
        at = self._at
        self._at = at + self._ID_BYTES
        return int.from_bytes(self._block[at : self._at])
