"""What one engine's KV cache probably holds, by last use: who would be evicted next, and what was evicted too early.

Theory of operation. A request touches a chain of blocks from its root, so a touched block has all its ancestors
touched at least as late: of each remembered chain only a *tail* is still its own, and eviction takes tails of the
oldest chains first, as engines do. That makes every step a C-level dictionary operation on whole chains. With KV events
the engine says what it dropped; without, the model is sized to the engine's reported capacity.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

_CHAINS_MAX: Final = 65_536
_TAU_S: Final = 60.0  # scheduling §5.2: regret is a ratio of averages over this time
_WINDOW_S: Final = 300.0  # an eviction longer ago is no reason for regret
_QUIET: Final = 1e-9


class Ghosts:
    """Keys evicted within the last 300 to 600 s, and the regret: how much of what is prefilled had been there."""

    __slots__ = ("_at", "_elder", "_maximum", "_opened_at", "_regretted", "_total", "_young")

    def __init__(self, maximum: int) -> None:
        self._maximum = max(2, maximum)
        self._young: dict[int, float] = {}
        self._elder: dict[int, float] = {}
        self._opened_at = 0.0
        self._at = 0.0
        self._regretted = 0.0
        self._total = 0.0

    def __len__(self) -> int:
        return len(self._young) + len(self._elder)

    def evicted(self, keys: list[int], now: float) -> None:
        """Remember keys that just left a cache."""
        if now - self._opened_at >= _WINDOW_S or len(self._young) + len(keys) > self._maximum // 2:
            self._elder, self._young, self._opened_at = self._young, {}, now
        self._young.update(dict.fromkeys(keys, now))

    def scheduled(self, uncached: list[int], now: float) -> None:
        """Count the blocks that a request has to compute; those evicted within the window are regretted."""
        self._decay(now)
        self._total += len(uncached)
        if not self._young and not self._elder:
            return
        since = now - _WINDOW_S
        young, elder = self._young, self._elder
        for key in uncached:
            at = young.pop(key, None)
            if at is None:
                at = elder.pop(key, None)
            if at is not None and at >= since:
                self._regretted += 1.0

    def regret(self, now: float) -> float:
        """Return the share of scheduled uncached blocks that had been evicted a short time ago."""
        self._decay(now)
        return self._regretted / self._total if self._total > _QUIET else 0.0

    def _decay(self, now: float) -> None:
        passed = now - self._at
        if passed > 0.0:
            factor = math.exp(-passed / _TAU_S)
            self._at = now
            self._regretted *= factor
            self._total *= factor


class Residency:
    """One endpoint's cache. `capacity` in blocks; `told` when KV events say what is dropped, so nothing is guessed."""

    __slots__ = ("_chains", "_front", "_ghosts", "_last", "_serial", "capacity", "told")

    def __init__(self, capacity: int, ghosts: Ghosts) -> None:
        self.capacity = capacity
        self.told = False
        self._ghosts = ghosts
        self._last: dict[int, int] = {}
        self._chains: OrderedDict[int, tuple[float, list[int]]] = OrderedDict()
        self._serial = 0
        self._front = (0, 0.0, 0)
        """Serial, time and tail of the chain that would be evicted next, as long as the tail is still its own."""

    @property
    def blocks(self) -> int:
        """Blocks held."""
        return len(self._last)

    def touch(self, keys: list[int], depth: int, now: float) -> list[int]:
        """A request uses this chain, of which `depth` blocks were there before; returns what it probably pushed out.

        `keys` must not change later.
        """
        if not keys:
            return []
        last = self._last
        self._serial = serial = self._serial + 1
        if depth:
            before = last.get(keys[depth - 1])
            chain = None if before is None else self._chains.get(before)
            if chain is not None and len(chain[1]) <= depth:
                del self._chains[before]  # type: ignore[arg-type]  # the conversation went on: superseded as a whole
        last.update(dict.fromkeys(keys, serial))
        self._chains[serial] = (now, keys)
        over = len(last) - self.capacity
        gone = self._evict(over, now) if over > 0 and not self.told else []
        while len(self._chains) > _CHAINS_MAX:
            gone += self._evict(1, now)
        return gone

    def learn(self, keys: list[int], now: float) -> None:
        """The engine said that it stored these blocks; those that no request of ours used are used now."""
        fresh = [key for key in keys if key not in self._last]
        if fresh:
            self.touch(fresh, 0, now)

    def dropped(self, keys: list[int], now: float) -> None:
        """The engine said that it evicted these blocks."""
        last = self._last
        gone = [key for key in keys if last.pop(key, None) is not None]
        if gone:
            self._ghosts.evicted(gone, now)

    def clear(self) -> None:
        """The engine dropped everything on purpose, or restarted: nothing to regret."""
        self._last.clear()
        self._chains.clear()

    def pressure(self, needed: float, now: float) -> tuple[float, float]:
        """Blocks that `needed` new ones would push out, and for how long the first of them has been idle (s)."""
        over = len(self._last) + needed - self.capacity
        if over <= 0.0:
            return 0.0, 0.0
        # Conditional expressions and no call in the usual case: every candidate of a decision is asked.
        serial, at, tail = self._front
        if self._last.get(tail) == serial:
            return over if over < needed else needed, now - at  # noqa: FURB136
        oldest = self._oldest()
        return over if over < needed else needed, 0.0 if oldest is None else now - oldest  # noqa: FURB136

    def _oldest(self) -> float | None:
        """When the chain that would be evicted next was used; chains whose tail was used later are forgotten here."""
        while self._chains:
            serial, (at, keys) = next(iter(self._chains.items()))
            own = self._trim(serial, keys)
            if own:
                self._front = (serial, at, own[-1])
                return at
            del self._chains[serial]
        return None

    def _trim(self, serial: int, keys: list[int]) -> list[int]:
        """Return the blocks that are this chain's own still; the tail decides, blocks before it are never older."""
        last = self._last
        if last.get(keys[-1]) == serial:
            return keys
        if not self.told:
            return []
        # Only events can take a tail away and leave what is before it.
        own = [key for key in keys if last.get(key) == serial]
        if own:
            self._chains[serial] = (self._chains[serial][0], own)
        return own

    def _evict(self, count: int, now: float) -> list[int]:
        last = self._last
        gone: list[int] = []
        while count > 0 and self._chains:
            serial, (at, keys) = next(iter(self._chains.items()))
            end = len(keys)
            while end and count > 0 and last.get(keys[end - 1]) == serial:
                end -= 1
                del last[keys[end]]
                gone.append(keys[end])
                count -= 1
            if end and last.get(keys[end - 1]) == serial:
                self._chains[serial] = (at, keys[:end])
            else:
                del self._chains[serial]
        if gone:
            self._ghosts.evicted(gone, now)
        return gone
