"""Who probably holds which block: our own placements, aged by generations (scheduling §2).

Theory of operation. Each endpoint incarnation owns one bit. `generations` maps hold `key → mask of owner bits`; a
record writes to the youngest map only, a look-up ORs them all and masks with the live slots. The youngest map is
closed every `ttl_s / (generations − 1)` seconds, or early when it is full, and the oldest is dropped whole: nothing is
ever aged entry by entry.

A record covers a chain from its root, so inside one map an owner of a block owns every block before it. That is why
both look-up and record may gallop. Only a roll-back below a later record can break it; such a map is marked *ragged*
and is walked until it is dropped. The property tests compare both ways with plain sets.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Final

import msgspec

from turnout.core import options
from turnout.core.kit.lru import LruMap
from turnout.core.prefix.open_counts import OpenCounts

# Two kinds of empty answers, told apart by identity; never written to.
MISS: Final[dict[int, int]] = {}
STALE: Final[dict[int, int]] = {}

_RECENT_MAX: Final = 65_536  # scheduling §5: first blocks whose last endpoint is remembered
# Entries of a dropped map freed with each record, beyond twice what it writes: freeing a map at once stalls for 20 ms,
# twice as fast as maps can fill never falls behind, and many more at a time show in the p99 of scheduling.
_FREED_PER_RECORD: Final = 8
_KEY_BYTES: Final = 48  # an integer above 2^60, as the allocator rounds it


class Generation:
    """One map with its age. A dropped one has an empty table, so late roll-backs find nothing to clear."""

    __slots__ = ("masks", "opened_at", "ragged", "serial", "table")

    def __init__(self, serial: int, opened_at: float) -> None:
        self.serial = serial
        self.opened_at = opened_at
        self.table: dict[int, int] = {}
        self.masks: dict[int, int] = {}
        self.ragged = False


class Placement(msgspec.Struct, frozen=True, gc=False):
    """What one record newly wrote: the bit on these keys of one generation."""

    generation: Generation
    keys: list[int]
    bit: int
    serial: int


class PrefixIndex:
    """The approximate index. Sizes and counters are public attributes for the metrics."""

    def __init__(self, prefix: options.Prefix, now: float = 0.0) -> None:
        self.enabled = prefix.max_blocks != 0
        self.live = 0
        self.created = 0
        self.evicted = {"cap": 0, "ttl": 0, "rollback": 0, "modelled": 0, "refcount": 0}
        self.purges = 0
        self.slots_exhausted = 0
        self.truncated = 0
        self._count = prefix.generations
        self._period_s = prefix.ttl_s / (prefix.generations - 1)
        per_map = None if prefix.max_blocks is None else prefix.max_blocks // prefix.generations
        self._per_map = per_map
        self._per_record = prefix.max_blocks_per_request
        if per_map is not None:
            self._per_record = min(self._per_record, per_map)
        self.refcounted = prefix.retention == "refcount"
        self._open = OpenCounts()
        self._max_slots = prefix.max_slots
        self._next_slot = 0
        self._free: list[int] = []
        self._retired: deque[tuple[int, int]] = deque()
        self._serial = 0
        self._records = 0
        self._last_record: dict[int, int] = {}
        self._recent: LruMap[int, int] = LruMap(_RECENT_MAX)
        self._freeing: deque[dict[int, int]] = deque()
        self._generations: deque[Generation] = deque()
        self.due = now  # when the youngest generation closes by age
        self._ragged = False
        for _ in range(self._count):
            self._open_generation(now)

    @property
    def entries(self) -> int:
        """Entries over all maps."""
        return sum(len(generation.table) for generation in self._generations)

    @property
    def memory_bytes(self) -> int:
        """Estimated memory of the entries, those still being freed included; the masks are shared and not counted."""
        tables = [generation.table for generation in self._generations] + list(self._freeing)
        return sum(sys.getsizeof(table) + _KEY_BYTES * len(table) for table in tables)

    @property
    def slots(self) -> int:
        """Live slots."""
        return self.live.bit_count()

    def assign(self, now: float) -> int:
        """Give out a slot as its bit; 0 when none is left, and the endpoint is served without affinity."""
        self.advance(now)
        if self._free:
            self._free.sort(reverse=True)
            number = self._free.pop()
        elif self._next_slot < self._max_slots:
            number = self._next_slot
            self._next_slot += 1
        else:
            self.slots_exhausted += 1
            if self._retired:
                # An early close is the way to get retired slots back.
                self._close(now, "cap")
            return 0
        bit = 1 << number
        self.live |= bit
        return bit

    def adopt(self, bit: int) -> None:
        """Take over a slot that another index gave out."""
        self.live |= bit

    def retire(self, bit: int) -> None:
        """Purge an endpoint: O(1), idempotent. The slot returns once no map can hold it any more."""
        if self.live & bit:
            self.live &= ~bit
            self.purges += 1
            self._last_record.pop(bit, None)
            self._open.drop(bit)
            self._retired.append((bit, self._serial))

    def match(self, keys: list[int], alive: int) -> dict[int, int]:
        """Contiguous depth in blocks per owner bit, owners of nothing left out; `alive` names the candidates' bits.

        Returns MISS when no candidate holds the first block, STALE when only retired endpoints do.
        """
        if not keys:
            return MISS
        gets = self._gets
        held = 0
        first = keys[0]
        for get in gets:
            held |= get(first, 0)
        owners = held & alive & self.live
        if not owners:
            return STALE if held and not held & self.live else MISS
        if self._ragged:
            return self._walk(keys, owners)
        size = len(keys)
        if size > 1:
            held = 0
            last = keys[-1]
            for get in gets:
                held |= get(last, 0)
            if held & owners != owners:
                return self._gallop(keys, owners)
        if not owners & (owners - 1):
            return {owners: size}
        depths: dict[int, int] = {}
        _spread(owners, size, depths)
        return depths

    def deepest(self, keys: list[int]) -> tuple[int, int]:
        """Position of the deepest block that anybody living holds, and its owners; (-1, 0) when nobody holds any."""
        for position in range(len(keys) - 1, -1, -1):
            held = 0
            for get in self._gets:
                held |= get(keys[position], 0)
            if held & self.live:
                return position, held & self.live
        return -1, 0

    def recent(self, first_key: int) -> int:
        """Return the bit of the endpoint that last got this first block; 0 when unknown."""
        return self._recent.peek(first_key) or 0

    def record(self, keys: list[int], bit: int, now: float) -> Placement | None:
        """Note that the endpoint of `bit` gets this chain; None when nothing was new. `keys` must not change later."""
        if now >= self.due:
            self.advance(now)
        end = len(keys)
        if end > self._per_record:
            self.truncated += end - self._per_record
            end = self._per_record
        if not end or not self.live & bit:
            return None
        self._recent.put(keys[0], bit)
        if self.refcounted:
            self._open.add(keys[:end], bit)
        generation = self._youngest
        start = 0 if generation.ragged else _first_without(generation.table, keys, end, bit)
        if start == end:
            return None
        per_map = self._per_map
        if per_map is not None:
            table = generation.table
            if len(table) + end - start > per_map and len(table) + _absent(table, keys, start, end) > per_map:
                self._close(now, "cap")
                generation = self._youngest
                start = 0
        if self._freeing:
            self._free_some(2 * (end - start) + _FREED_PER_RECORD)
        return self._write(generation, keys, start, end, bit)

    def rollback(self, placement: Placement) -> None:
        """Clear exactly the bits that this record newly set, wherever its generation is now; once."""
        generation = placement.generation
        table = generation.table
        if not table:
            return
        bit = placement.bit
        if self.live & bit and self._last_record.get(bit) != placement.serial:
            # A later record of the same endpoint may continue this chain: clearing can leave a hole below it.
            generation.ragged = True
            self._ragged = True
        cleared = 0
        for key in placement.keys:
            mask = table.get(key, 0)
            if mask == bit:
                del table[key]
                cleared += 1
            elif mask & bit:
                rest = mask & ~bit
                table[key] = generation.masks.setdefault(rest, rest)
        self.evicted["rollback"] += cleared

    def release(self, keys: list[int], bit: int) -> None:
        """An attempt that recorded this chain ended: with `refcount`, blocks of no open attempt are forgotten."""
        self.forget(self._open.remove(keys[: self._per_record], bit), bit, "refcount")

    def forget(self, keys: list[int], bit: int, reason: str = "modelled") -> None:
        """The endpoint of `bit` has probably evicted these blocks: ends of chains, so ownership stays prefix-closed."""
        for generation in self._generations:
            table = generation.table
            get = table.get
            for key in keys:
                mask = get(key, 0)
                if mask == bit:
                    del table[key]
                    self.evicted[reason] += 1
                elif mask & bit:
                    rest = mask & ~bit
                    table[key] = generation.masks.setdefault(rest, rest)

    def advance(self, now: float) -> None:
        """Close what is old. Called between requests only."""
        while now >= self.due:
            # Stay on the grid of periods, so that a late call lets nothing live longer.
            self._close(self.due, "ttl")
            if now - self.due > self._period_s * self._count and not self.entries:
                self._youngest.opened_at = now
                self.due = now + self._period_s

    def _write(self, generation: Generation, keys: list[int], start: int, end: int, bit: int) -> Placement | None:
        table = generation.table
        get = table.get
        share = generation.masks.setdefault
        before = len(table)
        fresh = keys if start == 0 and end == len(keys) else keys[start:end]
        if generation.ragged:
            fresh = [key for key in fresh if not get(key, 0) & bit]
        seen = joined = -1
        for key in fresh:
            mask = get(key)
            if mask is None:
                table[key] = bit
            elif mask == seen:
                table[key] = joined
            else:
                seen = mask
                joined = mask | bit
                # Equal masks are one object: with hundreds of endpoints each would else cost a big int per entry.
                joined = table[key] = share(joined, joined)
        if not fresh:
            return None
        self.created += len(table) - before
        self._records = serial = self._records + 1
        self._last_record[bit] = serial
        return Placement(generation, fresh, bit, serial)

    def _gallop(self, keys: list[int], owners: int) -> dict[int, int]:
        """Depths by leaps: owners only ever leave along the chain, so what holds at two ends holds between."""
        gets = self._gets
        depths: dict[int, int] = {}
        size = len(keys)

        def kept(position: int) -> int:
            held = 0
            key = keys[position]
            for get in gets:
                held |= get(key, 0)
            return held & owners

        low = 0
        while owners:
            high = size
            leap = 1
            while low + leap < size:
                if kept(low + leap) != owners:
                    high = low + leap
                    break
                low += leap
                leap *= 2
            while high - low > 1:
                middle = (low + high) >> 1
                if kept(middle) == owners:
                    low = middle
                else:
                    high = middle
            left = kept(high) if high < size else 0
            _spread(owners & ~left, high, depths)
            owners = left
            low = high
        return depths

    def _walk(self, keys: list[int], owners: int) -> dict[int, int]:
        """Depths block by block: right for any table."""
        gets = self._gets
        depths: dict[int, int] = {}
        depth = 0
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

    def _close(self, now: float, reason: str) -> None:
        oldest = self._generations.pop()
        if oldest.table:
            self.evicted[reason] += len(oldest.table)
            self._freeing.append(oldest.table)
            oldest.table = {}
        oldest.masks = {}
        self._open_generation(now)
        floor = self._generations[-1].serial
        while self._retired and self._retired[0][1] < floor:
            bit, _ = self._retired.popleft()
            self._free.append(bit.bit_length() - 1)

    def _open_generation(self, now: float) -> None:
        self._serial += 1
        self._youngest = Generation(self._serial, now)
        self._generations.appendleft(self._youngest)
        self.due = now + self._period_s
        self._ragged = any(generation.ragged for generation in self._generations)
        # Bound methods of the tables, youngest first: the look-up is the hottest loop of scheduling.
        self._gets = tuple(generation.table.get for generation in self._generations)

    def _free_some(self, entries: int) -> None:
        table = self._freeing[0]
        for _ in range(min(entries, len(table))):
            table.popitem()
        if not table:
            self._freeing.popleft()


def _first_without(table: dict[int, int], keys: list[int], end: int, bit: int) -> int:
    """Index of the first of `keys[:end]` that lacks the bit, by bisection: owned blocks are a prefix."""
    get = table.get
    if get(keys[end - 1], 0) & bit:
        return end
    low, high = 0, end - 1
    while low < high:
        middle = (low + high) >> 1
        if get(keys[middle], 0) & bit:
            low = middle + 1
        else:
            high = middle
    return low


def _absent(table: dict[int, int], keys: list[int], start: int, end: int) -> int:
    return sum(1 for key in keys[start:end] if key not in table)


def _spread(mask: int, depth: int, depths: dict[int, int]) -> None:
    while mask:
        low = mask & -mask
        depths[low] = depth
        mask ^= low
