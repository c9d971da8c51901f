"""Block keys: a prompt becomes a chain of 64-bit hashes, one per complete block (scheduling §1).

Three key spaces (`text`, `tok`, `meg`) never match across each other because the space is part of the root. A key is
a hint, never a proof: a collision may cost one poor placement.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence
from typing import Final

from xxhash import xxh3_64_intdigest

_VERSION: Final = "turnout.prefix.1"
_MEG_MODULUS: Final = 2**63 - 1
_STRETCH_BLOCKS: Final = 16


def root_key(
    model: str,
    *,
    space: str = "text",
    block: int = 256,
    weight_version: str = "",
    lora: str = "",
    cache_salt: str = "",
    tenant: str = "",
    render_salt: str = "",
) -> int:
    """The seed of the first block: everything but the prompt that must be equal for two prompts to share blocks."""
    parts = (_VERSION, space, str(block), model, weight_version, lora, cache_salt, tenant, render_salt)
    out = []
    for part in parts:
        raw = part.encode("utf-8", "replace")
        out.append(len(raw).to_bytes(4, "little"))
        out.append(raw)
    return xxh3_64_intdigest(b"".join(out), 0)


def text_keys(rendered: bytes, root: int, block_bytes: int, max_blocks: int) -> list[int]:
    """Keys of the complete blocks of a rendering, at most `max_blocks` from its start."""
    keys: list[int] = []
    append = keys.append
    digest = xxh3_64_intdigest
    key = root
    # The last start that still leaves a whole block, so that the loop needs no test of its own.
    stop = min(len(rendered) - block_bytes + 1, max_blocks * block_bytes)
    for start in range(0, stop, block_bytes):
        key = digest(rendered[start : start + block_bytes], key)
        append(key)
    return keys


class TextChains:
    """`text_keys` that remembers the keys of long stretches: turns of a conversation repeat everything before them.

    A stretch of blocks is found again by its hash under the key before it, as the index finds a block: one hash over
    4 KB instead of sixteen. Bounded: when full, all is forgotten.
    """

    __slots__ = ("_block_bytes", "_known", "_most")

    def __init__(self, block_bytes: int, stretches_max: int = 4096) -> None:
        self._block_bytes = block_bytes
        self._most = stretches_max
        self._known: dict[int, list[int]] = {}

    def keys(self, rendered: bytes, root: int, max_blocks: int) -> list[int]:
        """The same keys as `text_keys`, sooner when the beginning is known."""
        block_bytes = self._block_bytes
        size = _STRETCH_BLOCKS * block_bytes
        stop = min(len(rendered) // block_bytes, max_blocks) * block_bytes
        keys: list[int] = []
        key = root
        at = 0
        while at + size <= stop:
            stretch = rendered[at : at + size]
            name = xxh3_64_intdigest(stretch, key)
            known = self._known.get(name)
            if known is None:
                known = text_keys(stretch, key, block_bytes, _STRETCH_BLOCKS)
                if len(self._known) >= self._most:
                    self._known.clear()
                self._known[name] = known
            keys += known
            key = known[-1]
            at += size
        if at < stop:
            keys += text_keys(rendered[at:stop], key, block_bytes, max_blocks)
        return keys


def token_keys(tokens: Sequence[int], root: int, block_tokens: int, max_blocks: int) -> list[int]:
    """Keys of the complete blocks of token ids, as unsigned 32-bit little-endian. Ids outside that range wrap."""
    complete = min(len(tokens) // block_tokens, max_blocks) * block_tokens
    return text_keys(_packed("I", [t & 0xFFFFFFFF for t in tokens[:complete]]), root, 4 * block_tokens, max_blocks)


def meg_hashes(tokens: Sequence[int], block_tokens: int, max_blocks: int = 4096) -> list[int]:
    """The SHA-256 chain of §1.2, each digest projected to 1 … 2^63 − 1."""
    complete = min(len(tokens) // block_tokens, max_blocks) * block_tokens
    raw = _packed("q", tokens[:complete])
    size = 8 * block_tokens
    hashes: list[int] = []
    digest = bytes(32)
    for start in range(0, len(raw), size):
        digest = hashlib.sha256(digest + raw[start : start + size]).digest()
        hashes.append(int.from_bytes(digest[:8], "little") % _MEG_MODULUS + 1)
    return hashes


def meg_keys(hashes: Sequence[int], root: int) -> list[int]:
    """Index keys of Megatron hashes: each is already a chain, so each is hashed alone under the root."""
    return [xxh3_64_intdigest(value.to_bytes(8, "little"), root) for value in hashes]


def _packed(code: str, values: Sequence[int]) -> bytes:
    packed = array(code, values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
