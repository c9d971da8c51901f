"""The prefix store of one replayed engine: which blocks it holds, counted by reference, the oldest idle one leaves.

The rules are those of `turnout.sim.blocks`, with two additions that a replay needs: what sequences hold is bounded by
the accelerator's memory while what is kept may be larger (a host tier), and changes are logged as KV events.

Blocks are chained, and a sequence gives its blocks back deepest first. So whenever a block is present its parents are,
and whenever it is referenced they are: the depth of a chain is found by bisection.
"""

from __future__ import annotations

from collections import OrderedDict


class PrefixStore:
    """`refs` + private + idle ≤ `capacity`, and `refs` + private ≤ `hold_max`, in blocks.

    Keys below zero are blocks that no request can ask for again (generated text): they take room and are not logged.
    """

    __slots__ = ("_idle", "_refs", "capacity", "hold_max", "logging", "private", "removed", "stored")

    def __init__(self, hold_max: int, capacity: int, *, logging: bool = False) -> None:
        self.hold_max = hold_max
        self.capacity = capacity
        self.logging = logging
        self.private = 0
        self.stored: list[int] = []
        self.removed: list[int] = []
        self._refs: dict[int, int] = {}
        # OrderedDict and not dict: finding the oldest of a dict that is emptied from the front is quadratic.
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def used(self) -> int:
        """Blocks held by sequences."""
        return len(self._refs) + self.private

    @property
    def cached(self) -> int:
        """Blocks that nobody holds and that can be found again."""
        return len(self._idle)

    def found(self, chain: list[int], limit: int) -> int:
        """How many of the first `limit` keys are present without a hole."""
        refs, idle = self._refs, self._idle
        high = min(limit, len(chain))
        # Both ends first: most chains are found whole, or not at all.
        if not high or not (chain[0] in refs or chain[0] in idle):
            return 0
        last = chain[high - 1]
        if last in refs or last in idle:
            return high
        low = 1
        high -= 1
        while low < high:
            middle = (low + high) // 2
            key = chain[middle]
            if key in refs or key in idle:
                low = middle + 1
            else:
                high = middle
        return low

    def admit(self, chain: list[int], depth: int, fresh: int) -> bool:
        """Hold the first `depth` blocks of the chain and `fresh` private ones, or change nothing and return False."""
        refs, idle = self._refs, self._idle
        used = len(refs) + self.private
        if used + depth + fresh > self.hold_max:
            waking = sum(key in idle for key in chain[:depth])
            if used + waking + fresh > self.hold_max:
                return False
        for key in chain[:depth]:
            if key in refs:
                refs[key] += 1
            else:
                del idle[key]
                refs[key] = 1
        self.private += fresh
        self.evict()
        return True

    def room(self) -> int:
        """Blocks that sequences can still take."""
        return self.hold_max - len(self._refs) - self.private

    def take(self, blocks: int) -> None:
        """Hold more private blocks; the caller has asked for `room`."""
        self.private += blocks
        self.evict()

    def complete(self, keys: list[int]) -> None:
        """Turn as many private blocks into these complete ones, or share the ones that exist."""
        self.private -= len(keys)
        refs, idle = self._refs, self._idle
        for key in keys:
            if key in refs:
                refs[key] += 1
                continue
            if key in idle:
                del idle[key]
            elif self.logging and key >= 0:
                self.stored.append(key)
            refs[key] = 1

    def keep(self, keys: list[int]) -> None:
        """Turn as many private blocks into idle ones that nobody holds (generated text of a sequence that ended)."""
        self.private -= len(keys)
        idle = self._idle
        for key in reversed(keys):
            idle[key] = None

    def release(self, keys: list[int], private: int) -> None:
        """Give back a sequence's blocks, deepest last in `keys`; the deepest become the first to be evicted."""
        self.private -= private
        refs, idle = self._refs, self._idle
        for key in reversed(keys):
            count = refs[key] - 1
            if count:
                refs[key] = count
            else:
                del refs[key]
                idle[key] = None

    def evict(self) -> None:
        """Drop idle blocks, the one unused for longest first, until the rest fits."""
        idle = self._idle
        surplus = len(self._refs) + self.private + len(idle) - self.capacity
        while surplus > 0:
            key, _ = idle.popitem(last=False)
            surplus -= 1
            if key >= 0 and self.logging:
                self.removed.append(key)
