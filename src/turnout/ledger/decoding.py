"""Facts become objects where they are stored, and nowhere before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from turnout.ledger import entry, messages
from turnout.ledger.sink import Written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.core.facts import CallFact
    from turnout.ledger.store import Store


class StoreSink:
    """A `sink.Sink` over a store in this process."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, frames: Sequence[bytes]) -> Written:
        """Decode and store; a fact that no column could hold costs only itself."""
        facts: list[CallFact] = []
        invalid = 0
        for frame in frames:
            try:
                facts += messages.FACTS.joined([frame])
            except msgspec.DecodeError:
                readable, unreadable = _one_by_one(frame)
                facts += readable
                invalid += unreadable
        written = self._store.write(facts)
        return written.plus(Written(invalid=invalid)) if invalid else written

    def prune(self) -> bool:
        """Sum up one hour or delete one chunk."""
        return self._store.prune()

    def close(self) -> None:
        """Leave the database as it should be found."""
        self._store.close()


def _one_by_one(frame: bytes) -> tuple[list[CallFact], int]:
    facts: list[CallFact] = []
    invalid = 0
    for part in entry.singly(frame):
        try:
            facts += messages.FACTS.joined([part])
        except msgspec.DecodeError:
            invalid += 1
    return facts, invalid
