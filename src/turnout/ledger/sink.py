"""The contract between the drain and whatever keeps its batches: rows written, or the reason why not now."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence


class Written(msgspec.Struct, frozen=True, gc=False):
    """What one `write` did: rows per table, calls that were there already, calls no table can hold."""

    calls: int = 0
    attempts: int = 0
    routes: int = 0
    decisions: int = 0
    decisions_too_large: int = 0
    duplicates: int = 0
    invalid: int = 0
    commits: int = 0
    unpriced: Counter[str] = msgspec.field(default_factory=Counter)
    """By provider: attempts with tokens that no known price covers."""

    def plus(self, other: Written) -> Written:
        """Add two reports field by field."""
        names = self.__struct_fields__
        return Written(*(getattr(self, name) + getattr(other, name) for name in names))


class SinkDownError(Exception):
    """The batch is not stored and may be stored later. `kind` is a closed set and a metric label."""

    def __init__(self, kind: str, detail: str) -> None:
        """Keep the label and the driver's own words."""
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class LedgerRefusedError(Exception):
    """The process must not start on this database: bad address, or a schema newer than the code."""


class Sink(Protocol):
    """Takes batches; every method is called by the writer thread only."""

    def write(self, frames: Sequence[bytes]) -> Written:
        """Store all facts of these lists in one transaction, or raise SinkDownError and store none.

        What is stored twice changes nothing; what cannot be read is counted.
        """

    def prune(self) -> bool:
        """Delete one chunk of what is too old; True while there is more."""

    def close(self) -> None:
        """Checkpoint and let go of the database; never raises."""
