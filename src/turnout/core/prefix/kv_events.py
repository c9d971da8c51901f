"""What an engine says about its KV cache, whatever family and encoding it came in (engines §4)."""

from __future__ import annotations

import msgspec


class Stored(msgspec.Struct, frozen=True, gc=False):
    """Blocks that now are in a tier, chained under `parent` (None: the root). Hashes are the engine's own, as u64.

    `mixins` has what else went into a block's hash, one byte string per block, empty for nothing. `tokens` is empty
    when known blocks only moved. `full` is False for blocks that are no full attention: they tell of no prefix.
    """

    hashes: tuple[int, ...]
    parent: int | None
    tokens: tuple[int, ...]
    block_tokens: int
    tier: int = 0
    lora: str = ""
    salt: str = ""
    mixins: tuple[bytes, ...] = ()
    group: int | None = None
    full: bool = True


class Removed(msgspec.Struct, frozen=True, gc=False):
    """Blocks that left a tier."""

    hashes: tuple[int, ...]
    tier: int = 0
    group: int | None = None


class Cleared(msgspec.Struct, frozen=True, gc=False):
    """Everything is gone."""


KvEvent = Stored | Removed | Cleared


class Batch(msgspec.Struct, frozen=True, gc=False):
    """One message. `skipped` counts what is unknown to us, `bad` what could not be read, by reason."""

    events: tuple[KvEvent, ...] = ()
    rank: int | None = None
    skipped: int = 0
    bad: tuple[str, ...] = ()
    oversized: bool = False
