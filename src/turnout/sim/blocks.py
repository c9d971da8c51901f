"""The prefix store: chained full KV blocks with reference counts, and LRU eviction of blocks nobody holds.

A block is identified by its chain key, so equal blocks exist once: a sequence that computes a block someone else has
completed shares that one and gives its own back. Blocks that are not complete are only counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def extend_chain(chain: list[int], tokens: bytes | bytearray, block_bytes: int, root: int) -> None:
    """Append the keys of all full blocks of `tokens` that `chain` lacks: `h_i = xxh3_64(block_i, seed=h_{i-1})`."""
    parent = chain[-1] if chain else root
    for at in range(len(chain) * block_bytes, len(tokens) - block_bytes + 1, block_bytes):
        parent = xxhash.xxh3_64_intdigest(tokens[at : at + block_bytes], parent)
        chain.append(parent)


class BlockStore:
    """`capacity` blocks: referenced + partial + idle + free = capacity at all times."""

    __slots__ = ("_evicted", "_idle", "_partial", "_refs", "capacity")

    def __init__(self, capacity: int, evicted: Callable[[int], None] | None = None) -> None:
        self.capacity = capacity
        self._evicted = evicted
        self._refs: dict[int, int] = {}
        # Insertion order is recency: the first key is the one unused for longest.
        self._idle: dict[int, None] = {}
        self._partial = 0

    @property
    def used(self) -> int:
        """Blocks held by sequences."""
        return len(self._refs) + self._partial

    @property
    def cached(self) -> int:
        """Complete blocks that nobody holds and that can be found again."""
        return len(self._idle)

    def found(self, keys: Sequence[int]) -> int:
        """How many of these keys, from the first, are present without a hole."""
        refs, idle = self._refs, self._idle
        for depth, key in enumerate(keys):
            if key not in refs and key not in idle:
                return depth
        return len(keys)

    def admit(self, found: Sequence[int], fresh: int) -> bool:
        """Hold the found blocks and `fresh` partial ones, or change nothing and return False."""
        idle = self._idle
        waking = sum(key in idle for key in found)
        if self.used + waking + fresh > self.capacity:
            return False
        for key in found:
            if key in idle:
                del idle[key]
                self._refs[key] = 1
            else:
                self._refs[key] += 1
        self._partial += fresh
        self._evict()
        return True

    def take(self) -> bool:
        """Hold one more partial block, evicting the oldest idle one if need be; False when all blocks are held."""
        if self.used >= self.capacity:
            return False
        self._partial += 1
        self._evict()
        return True

    def complete(self, key: int) -> bool:
        """Turn one partial block into the complete block `key`, or share the one that exists; True when it is new."""
        self._partial -= 1
        if key in self._refs:
            self._refs[key] += 1
            return False
        known = key in self._idle
        self._idle.pop(key, None)
        self._refs[key] = 1
        return not known

    def holds(self, key: int) -> bool:
        """Whether a complete block can be found, held or idle."""
        return key in self._refs or key in self._idle

    def release(self, keys: Iterable[int], partial: int) -> None:
        """Give back a sequence's blocks, deepest last in `keys`; the deepest become the first to be evicted."""
        self._partial -= partial
        refs = self._refs
        for key in reversed(list(keys)):
            count = refs[key] - 1
            if count:
                refs[key] = count
            else:
                del refs[key]
                self._idle[key] = None

    def _evict(self) -> None:
        idle = self._idle
        while len(self._refs) + self._partial + len(idle) > self.capacity:
            key = next(iter(idle))
            del idle[key]
            if self._evicted is not None:
                self._evicted(key)
