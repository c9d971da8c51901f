"""One publisher's numbered batches: which are applied when, what is asked for again, what was missed (engines §5).

Theory of operation. The sequence number is the only sign of loss. In order, a batch is applied at once. After a hole,
live batches are kept while a replay of what is missing is asked for; when it ends, replay and kept batches are applied
in order, and what is still missing is a *gap*. A number that goes back is a duplicate if that very batch was applied a
short time ago, else a restart of the publisher.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Generic, TypeVar

import msgspec

B = TypeVar("B")

_RECENT = 1024


class Kind(enum.Enum):
    """What to do, in the order of the list that `Sequencer` returns."""

    APPLY = "apply"
    RESTART = "restart"
    GAP = "gap"
    WHOLE = "whole"
    """Everything from the publisher's first batch on is known."""
    REPLAY = "replay"


class Step(msgspec.Struct, Generic[B], frozen=True, gc=False):
    """One thing to do: apply `batch`; ask for a replay from `number`; `number` batches are missing for good."""

    kind: Kind
    batch: B | None = None
    number: int = 0


class Sequencer(Generic[B]):
    """One (endpoint, rank). `held_max` bounds what is kept while a replay is under way."""

    __slots__ = ("_held", "_held_max", "_recent", "last", "missing", "overflowed", "replaying", "replays")

    def __init__(self, held_max: int = 10_000) -> None:
        self._held_max = held_max
        self._held: dict[int, B] = {}
        self._recent: deque[tuple[int, int]] = deque(maxlen=_RECENT)
        self.last: int | None = None
        self.replaying = False
        self.replays = 0
        self.missing = 0
        self.overflowed = 0

    def received(self, seq: int, digest: int, batch: B) -> list[Step[B]]:
        """A live batch that could be read arrived; `digest` tells equal payloads."""
        last = self.last
        if last is not None and seq <= last:
            if (seq, digest) in self._recent:
                return []
            return self._restarted(seq, digest, batch)
        if self.replaying:
            return self._hold(seq, batch)
        if seq == (0 if last is None else last + 1):
            self._applied(seq, digest)
            steps: list[Step[B]] = [Step(Kind.APPLY, batch)]
            if last is None:
                steps.append(Step(Kind.WHOLE))
            return steps
        self._held = {seq: batch}
        return self._ask(0 if last is None else last + 1)

    def replayed(self, batches: list[tuple[int, int, B]]) -> list[Step[B]]:
        """A replay ended, also with nothing: (seq, digest, batch) in any order."""
        if not self.replaying:
            return []
        self.replaying = False
        steps: list[Step[B]] = []
        first = self.last is None
        expected = 0 if self.last is None else self.last + 1
        whole = True
        digests = {seq: digest for seq, digest, _ in batches}
        known = {seq: batch for seq, _, batch in batches} | self._held
        self._held = {}
        for seq in sorted(known):
            if seq < expected:
                continue
            if seq > expected:
                self.missing += seq - expected
                steps.append(Step(Kind.GAP, None, seq - expected))
                whole = False
            steps.append(Step(Kind.APPLY, known[seq]))
            self._applied(seq, digests.get(seq, 0))
            expected = seq + 1
        if first and whole and steps:
            steps.append(Step(Kind.WHOLE))
        return steps

    def lost(self) -> None:
        """The connection is gone, and with it what was under way: the next number shows what was missed."""
        self.replaying = False
        self._held = {}

    def _restarted(self, seq: int, digest: int, batch: B) -> list[Step[B]]:
        self._held = {}
        self._recent.clear()
        self.replaying = False
        self.last = None
        if seq == 0:
            self._applied(0, digest)
            return [Step(Kind.RESTART), Step(Kind.APPLY, batch), Step(Kind.WHOLE)]
        self._held = {seq: batch}
        return [Step(Kind.RESTART), *self._ask(0)]

    def _hold(self, seq: int, batch: B) -> list[Step[B]]:
        if len(self._held) >= self._held_max:
            # What does not fit is missed, and the number after it will say so.
            self.overflowed += 1
            return []
        self._held[seq] = batch
        return []

    def _ask(self, start: int) -> list[Step[B]]:
        self.replaying = True
        self.replays += 1
        return [Step(Kind.REPLAY, None, start)]

    def _applied(self, seq: int, digest: int) -> None:
        self.last = seq
        self._recent.append((seq, digest))
