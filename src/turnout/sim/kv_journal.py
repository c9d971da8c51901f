"""What the block store stored and evicted, in order, as KV events of engines §4; pure, so that a replay can use it."""

from __future__ import annotations

from typing import Literal

import msgspec

KvEncoding = Literal["array", "map", "map-batch"]
KvHashes = Literal["int", "bytes"]

_MEDIUM = "GPU"
_HASH_BYTES = 32


class KvJournal:
    """Collects changes between two publications; `take` empties it."""

    def __init__(self, block_tokens: int, encoding: KvEncoding, hashes: KvHashes, rank: int = 0) -> None:
        self._block_tokens = block_tokens
        self._encoding = encoding
        self._hashes = hashes
        self._rank = rank
        self._events: list[dict[str, object]] = []

    def stored(self, keys: list[int], parent: int | None, tokens: list[int], salt: str) -> None:
        """Blocks were completed, one after the other."""
        extra: list[object] | None = None
        if salt and parent is None:
            extra = [[salt], *([None] * (len(keys) - 1))]
        self._events.append(
            {
                "type": "BlockStored",
                "block_hashes": [self._hash(key) for key in keys],
                "parent_block_hash": None if parent is None else self._hash(parent),
                "token_ids": tokens,
                "block_size": self._block_tokens,
                "lora_id": None,
                "medium": _MEDIUM,
                "lora_name": None,
                "extra_keys": extra,
            }
        )

    def removed(self, key: int) -> None:
        """A block was evicted."""
        last = self._events[-1] if self._events else None
        if last is not None and last["type"] == "BlockRemoved":
            last["block_hashes"].append(self._hash(key))  # type: ignore[attr-defined]  # a list, see below
        else:
            self._events.append({"type": "BlockRemoved", "block_hashes": [self._hash(key)], "medium": _MEDIUM})

    def take(self, now: float) -> bytes | None:
        """Return one batch with everything since the last call; None when nothing happened."""
        if not self._events:
            return None
        events: list[object] = list(self._events)
        self._events = []
        if self._encoding == "array":
            events = [list(event.values()) for event in events]  # type: ignore[attr-defined]  # dictionaries, see above
        batch: object = [now, events, self._rank]
        if self._encoding == "map-batch":
            batch = {"ts": now, "events": events, "data_parallel_rank": self._rank}
        return msgspec.msgpack.encode(batch)

    def _hash(self, key: int) -> int | bytes:
        return key if self._hashes == "int" else key.to_bytes(_HASH_BYTES, "big")
