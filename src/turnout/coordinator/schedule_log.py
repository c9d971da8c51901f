"""Where each request went, for offline study: a ring of records, and its two spellings.

The document is upstream's own, field by field, with ours added; the line form has its head on the first line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

_AT_ONCE = 1000  # records encoded in one step, so that no step holds the interpreter for long
_encoder = msgspec.json.Encoder()


class Scheduled(msgspec.Struct, frozen=True, gc=False):
    """One attempt: `rank_index` is the place of the engine among the identities known then, in order."""

    request_id: int
    rank_index: int
    num_hashes: int
    endpoint: str
    matched_blocks: int
    attempt: int
    ts_ms: int


class ScheduleLog:
    """The newest `maximum` records; `dropped` counts the older ones."""

    def __init__(self, policy: str, maximum: int) -> None:
        self.policy = policy
        self.dropped = 0
        self.records: deque[Scheduled] = deque(maxlen=maximum)

    def add(self, record: Scheduled) -> None:
        """Append; the oldest makes room."""
        if len(self.records) == self.records.maxlen:
            self.dropped += 1
        self.records.append(record)

    def head(self, data_parallel_size: int) -> dict[str, Any]:
        """What stands before the records."""
        return {
            "policy": self.policy,
            "data_parallel_size": data_parallel_size,
            "num_requests": len(self.records),
            "dropped": self.dropped,
        }

    def document(self, data_parallel_size: int) -> Iterator[bytes]:
        """Upstream's document, in parts, as it stands now whatever is added later."""
        head, records = _encoder.encode(self.head(data_parallel_size)), list(self.records)
        return _document(head, records)

    def lines(self, data_parallel_size: int) -> Iterator[bytes]:
        """One JSON object a line, in parts: the head, then each record."""
        head, records = _encoder.encode(self.head(data_parallel_size)), list(self.records)
        return _lines(head, records)


def _document(head: bytes, records: list[Scheduled]) -> Iterator[bytes]:
    yield head[:-1] + b',"records":['
    for at in range(0, len(records), _AT_ONCE):
        yield (b"," if at else b"") + _encoder.encode(records[at : at + _AT_ONCE])[1:-1]
    yield b"]}"


def _lines(head: bytes, records: list[Scheduled]) -> Iterator[bytes]:
    yield head + b"\n"
    for at in range(0, len(records), _AT_ONCE):
        yield _encoder.encode_lines(records[at : at + _AT_ONCE])
