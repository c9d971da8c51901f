"""Who holds which block, as the engines themselves say: `key → owner mask` per memory tier (scheduling §3.1).

A *stream* is one (endpoint incarnation, rank) and owns one bit. Unlike our own history, blocks of a chain come and go
one by one, so depth is found by walking: a block beyond a hole counts nothing. Entries of a stream that ended are taken
out a few at a time; until then the live mask hides them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

GPU, HOST, EXTERNAL, DISK = range(4)
_PURGED_PER_CALL = 256


class ExactStream:
    """What one rank's cache holds. `hashes` maps the engine's own hash of a block to our key."""

    __slots__ = ("bit", "block_tokens", "hashes", "mode", "older", "used_at")

    def __init__(self, bit: int, block_tokens: int) -> None:
        self.bit = bit
        self.block_tokens = block_tokens
        self.hashes: dict[int, int] = {}
        self.older: dict[int, int] = {}
        """Blocks known from before a gap: they may have been dropped unnoticed."""
        self.used_at = 0.0
        """When a request was last sent there: the one unused for longest is given up at the cap."""
        self.mode = 0
        """How far it may be believed; the value of a `Mode`."""

    @property
    def blocks(self) -> int:
        """Blocks held, over all tiers."""
        return len(self.hashes) + len(self.older)


class ExactIndex:
    """All streams. `credits` is the worth of a block per tier, GPU first."""

    def __init__(self, credits: Iterable[float] = (1.0, 0.8, 0.6, 0.3)) -> None:  # noqa: A002 - the word of the spec
        self.live = 0
        self.evicted: dict[str, int] = {}
        self._credits = tuple(credits)
        self._tables: tuple[dict[int, int], ...] = ({}, {}, {}, {})
        self._masks: dict[int, int] = {}
        self._bits: list[int] = []
        self._next = 0
        self._purging: deque[tuple[int, dict[int, int]]] = deque()
        self.pairs = 0
        """(stream, block) pairs, ended streams excluded."""

    @property
    def entries(self) -> int:
        """Keys over all tiers."""
        return sum(len(table) for table in self._tables)

    def open(self, block_tokens: int) -> ExactStream:
        """Begin a stream."""
        if self._bits:
            bit = self._bits.pop()
        else:
            bit = 1 << self._next
            self._next += 1
        self.live |= bit
        return ExactStream(bit, block_tokens)

    def close(self, stream: ExactStream, reason: str) -> None:
        """End a stream: it matches nothing from here on; its entries go a few at a time."""
        if not self.live & stream.bit:
            return
        self.live &= ~stream.bit
        self._count(reason, stream.blocks)
        self.pairs -= stream.blocks
        self._purging.append((stream.bit, {**stream.older, **stream.hashes}))
        stream.hashes, stream.older = {}, {}

    def stored(self, stream: ExactStream, pairs: Iterable[tuple[int, int]], tier: int = GPU) -> None:
        """The engine stored blocks: (its hash, our key)."""
        if not self.live & stream.bit:
            return
        if self._purging:
            self._purge()
        bit = stream.bit
        table = self._tables[tier]
        get = table.get
        share = self._masks.setdefault
        hashes, older = stream.hashes, stream.older
        before = len(hashes) + len(older)
        for theirs, key in pairs:
            mask = get(key, 0)
            if not mask:
                table[key] = bit
            elif not mask & bit:
                joined = mask | bit
                table[key] = share(joined, joined)
            hashes[theirs] = key
            if older:
                older.pop(theirs, None)
        self.pairs += len(hashes) + len(older) - before

    def removed(self, stream: ExactStream, theirs: Iterable[int], tier: int = GPU) -> list[int]:
        """The engine dropped blocks from one tier; returns the keys that it holds in no tier any more."""
        bit = stream.bit
        if not self.live & bit:
            return []
        table = self._tables[tier]
        others = [other for other in self._tables if other is not table and other]
        gone: list[int] = []
        for one in theirs:
            key = stream.hashes.get(one)
            if key is None:
                key = stream.older.get(one)
                if key is None:
                    continue
            self._clear(table, key, bit)
            if not any(other.get(key, 0) & bit for other in others):
                stream.hashes.pop(one, None)
                stream.older.pop(one, None)
                gone.append(key)
        self.pairs -= len(gone)
        self._count("event_removed", len(gone))
        return gone

    def gap(self, stream: ExactStream) -> None:
        """Something was missed: what is known is older than the gap."""
        stream.older.update(stream.hashes)
        stream.hashes = {}

    def drop_older(self, stream: ExactStream) -> None:
        """Everything that survived the gap has been stored again by now: the rest is no longer there."""
        older, stream.older = stream.older, {}
        for key in older.values():
            for table in self._tables:
                self._clear(table, key, stream.bit)
        self.pairs -= len(older)
        self._count("turnover", len(older))

    def match(self, keys: list[int], alive: int) -> dict[int, float]:
        """Contiguous depth per stream bit in blocks, deeper tiers at their credit; owners of nothing left out."""
        alive &= self.live
        if not keys or not alive:
            return {}
        found: dict[int, float] = {}
        gpu = self._tables[GPU]
        depths = _walk((gpu.get,), keys, alive)
        lower = [table for table in self._tables[1:] if table]
        if not lower:
            found.update(depths)
            return found
        credit = self._credits
        for bit, depth in depths.items():
            found[bit] = credit[GPU] * depth
        gets = [gpu.get]
        previous = depths
        for tier in (HOST, EXTERNAL, DISK):
            if not self._tables[tier]:
                continue
            gets.append(self._tables[tier].get)
            deeper = _walk(tuple(gets), keys, alive)
            for bit, depth in deeper.items():
                found[bit] = found.get(bit, 0.0) + credit[tier] * (depth - previous.get(bit, 0))
            previous = deeper
        return found

    def _purge(self) -> None:
        bit, rest = self._purging[0]
        for _ in range(min(_PURGED_PER_CALL, len(rest))):
            _, key = rest.popitem()
            for table in self._tables:
                self._clear(table, key, bit)
        if not rest:
            self._purging.popleft()
            self._bits.append(bit)

    def _clear(self, table: dict[int, int], key: int, bit: int) -> None:
        mask = table.get(key, 0)
        if mask == bit:
            del table[key]
        elif mask & bit:
            rest = mask & ~bit
            table[key] = self._masks.setdefault(rest, rest)

    def _count(self, reason: str, blocks: int) -> None:
        self.evicted[reason] = self.evicted.get(reason, 0) + blocks


def _walk(gets: tuple[Callable[[int, int], int], ...], keys: list[int], alive: int) -> dict[int, int]:
    """Depth per bit, block by block; a bit leaves at its first hole."""
    depths: dict[int, int] = {}
    owners = alive
    depth = 0
    if len(gets) == 1:
        get = gets[0]
        for key in keys:
            left = get(key, 0) & owners
            if left != owners:
                _spread(owners & ~left, depth, depths)
                owners = left
                if not owners:
                    return depths
            depth += 1
    else:
        for key in keys:
            held = 0
            for get in gets:
                held |= get(key, 0)
            left = held & owners
            if left != owners:
                _spread(owners & ~left, depth, depths)
                owners = left
                if not owners:
                    return depths
            depth += 1
    _spread(owners, depth, depths)
    return depths


def _spread(mask: int, depth: int, depths: dict[int, int]) -> None:
    if not depth:
        return
    while mask:
        low = mask & -mask
        depths[low] = depth
        mask ^= low
