"""Where each request went, for offline study: a ring of records, and its two spellings.

The document is upstream's own, field by field, with ours added; the line form has its head on the first line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec


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

    def document(self, data_parallel_size: int) -> bytes:
        """Upstream's document."""
        return msgspec.json.encode({**self.head(data_parallel_size), "records": list(self.records)})

    def lines(self, data_parallel_size: int) -> Iterator[bytes]:
        """One JSON object a line: the head, then each record."""
        encode = msgspec.json.encode
        yield encode(self.head(data_parallel_size)) + b"\n"
        for record in self.records:
            yield encode(record) + b"\n"
