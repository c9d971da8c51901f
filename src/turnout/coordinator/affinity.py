"""Which engine gets a request: prefix match against load over the engines at the door (scheduling §5.1).

Engines come sorted by identity, so that the first of several equals is the first identity. The index is the core's;
what the door adds are the forms that compare with Megatron's own coordinator.
"""

from __future__ import annotations

import math

import msgspec

from turnout.coordinator.peers import Engine
from turnout.core import options
from turnout.core.coordinator_options import Affinity
from turnout.core.kit.lru import LruMap
from turnout.core.kit.rotation import Rotation
from turnout.core.prefix.index import STALE, Placement, PrefixIndex

BLOCKS_PER_REQUEST_MAX = 4096
_SLOTS_MAX = 512
_RECENCY_MAX = 65_536
_ALIASES = {"first_prefix_block": "first_block", "load_balanced": "least_busy"}
_DIGITS = 6


class Choice(msgspec.Struct, frozen=True, gc=False):
    """One decision. `result` is match, declined, stale, miss or no_hash; `fallback` names the missing signal."""

    engine: Engine
    matched_blocks: int
    result: str
    fallback: str = ""


class Chooser:
    """Policy, index and rotation of one door. `capacity` is what an engine runs at once."""

    def __init__(self, affinity: Affinity, capacity: int, now: float = 0.0) -> None:
        self.policy = _ALIASES.get(affinity.policy, affinity.policy)
        self.index = PrefixIndex(
            options.Prefix(
                max_blocks=affinity.max_blocks or None,
                ttl_s=affinity.ttl_s or math.inf,
                max_blocks_per_request=BLOCKS_PER_REQUEST_MAX,
                max_slots=_SLOTS_MAX,
            ),
            now,
        )
        self._affinity = affinity
        self._capacity = capacity
        self._rotation = Rotation(affinity.seed)
        self._first_only = self.policy == "first_block" or (
            self.policy == "affinity_load" and affinity.match == "first_block"
        )
        # Upstream breaks ties by who was given the deepest matched block last; only its form needs to know.
        self._recency: LruMap[int, dict[int, int]] | None = None
        if self.policy == "affinity_load" and affinity.form == "free_capacity":
            self._recency = LruMap(_RECENCY_MAX)
        self._records = 0

    @property
    def blocks_wanted(self) -> int:
        """How many blocks of a prompt the policy reads; 0 when it looks at load alone."""
        if self.policy == "least_busy":
            return 0
        return 1 if self._first_only else BLOCKS_PER_REQUEST_MAX

    @property
    def upstream_policy(self) -> str:
        """What Megatron's coordinator calls this rule; our own name for those that it has not."""
        if self.policy == "least_busy":
            return "load_balanced"
        if self._first_only:
            return "first_prefix_block"
        is_deepest = self.policy == "affinity_load" and self._affinity.match == "deepest_row"
        return "longest_prefix" if is_deepest else self.policy

    def hashes(self, tokens: int, block_tokens: int) -> int:
        """How many block hashes Megatron's coordinator would have of a prompt of so many tokens."""
        blocks = tokens // block_tokens
        return min(1, blocks) if self._first_only else blocks

    def choose(self, keys: list[int], engines: list[Engine], now: float) -> Choice:
        """Pick one of at least one engine. Changes nothing but the rotation and the age of the index."""
        index = self.index
        if now >= index.due:
            index.advance(now)
        busy = [len(engine.open) for engine in engines]
        if not keys or self.policy == "least_busy":
            return Choice(
                engines[self._least_busy(busy)], 0, "no_hash", "" if self.policy == "least_busy" else "no_hash"
            )
        alive = 0
        for engine in engines:
            alive |= engine.bit
        owners = index.match(keys, alive)
        depths = [owners.get(engine.bit, 0) if engine.bit else 0 for engine in engines]
        result = "match" if owners else "stale" if owners is STALE else "miss"
        if self.policy == "affinity_load" and self._affinity.form == "free_capacity":
            return self._choice(engines, depths, self._by_free_capacity(keys, engines, depths, busy), result)
        if result != "match":
            return Choice(engines[self._in_turn(busy)], 0, result, "no_match")
        return self._choice(engines, depths, self._by_match(keys, engines, depths, busy), result)

    def record(self, keys: list[int], engine: Engine, now: float) -> Placement | None:
        """Remember that this engine got these blocks."""
        if not keys or not engine.bit:
            return None
        if self._recency is not None:
            self._records += 1
            for key in keys:
                row = self._recency.peek(key)
                self._recency.put(
                    key, {engine.bit: self._records} if row is None else {**row, engine.bit: self._records}
                )
        return self.index.record(keys, engine.bit, now)

    def _choice(self, engines: list[Engine], depths: list[int], position: int, result: str) -> Choice:
        depth = depths[position]
        if result == "match" and not depth:
            result = "declined"
        return Choice(engines[position], depth, result)

    def _least_busy(self, busy: list[int]) -> int:
        # The upstream form breaks ties by identity; ours lets equals take turns, or an idle pool would fill one engine.
        if self.policy == "least_busy" or self._affinity.form == "free_capacity":
            return busy.index(min(busy))
        return self._in_turn(busy)

    def _in_turn(self, busy: list[int]) -> int:
        lowest = min(busy)
        near = [position for position, load in enumerate(busy) if load == lowest]
        return near[0] if len(near) == 1 else near[self._rotation.turn(len(near))]

    def _by_match(self, keys: list[int], engines: list[Engine], depths: list[int], busy: list[int]) -> int:
        if self.policy == "longest_prefix":
            return self._among(keys, engines, busy, depths, max(depths))
        if self.policy == "first_block":
            owners = [load if depth else math.inf for depth, load in zip(depths, busy, strict=True)]
            return self._among(keys, engines, busy, owners, min(owners))
        totals = self._mean_relative(depths, busy, len(keys))
        best = max(totals)
        near = [position for position, total in enumerate(totals) if round(total, _DIGITS) == round(best, _DIGITS)]
        return min(near, key=busy.__getitem__)

    def _among(
        self, keys: list[int], engines: list[Engine], busy: list[int], column: list[int] | list[float], best: float
    ) -> int:
        """Break ties: who got the first block last, then the least busy, then in turn."""
        near = [position for position, value in enumerate(column) if value == best]
        recent = self.index.recent(keys[0])
        last = [position for position in near if engines[position].bit == recent]
        if last:
            return last[0]
        lowest = min(busy[position] for position in near)
        near = [position for position in near if busy[position] == lowest]
        return near[0] if len(near) == 1 else near[self._rotation.turn(len(near))]

    def _mean_relative(self, depths: list[int], busy: list[int], blocks: int) -> list[float]:
        mean = sum(busy) / len(busy)
        weight = self._affinity.beta / max(1.0, mean)
        shares = self._shares(depths, blocks)
        return [share - (load - mean) * weight for share, load in zip(shares, busy, strict=True)]

    def _shares(self, depths: list[int], blocks: int) -> list[float]:
        if self._affinity.match == "deepest_row":
            deepest = max(depths)
            return [depth / blocks if depth == deepest else 0.0 for depth in depths]
        return [depth / blocks for depth in depths]

    def _by_free_capacity(self, keys: list[int], engines: list[Engine], depths: list[int], busy: list[int]) -> int:
        alpha, capacity = self._affinity.alpha, self._capacity
        shares = self._shares(depths, len(keys))
        totals = [
            round(alpha * share + (1.0 - alpha) * max(0, capacity - load) / capacity, _DIGITS)
            for share, load in zip(shares, busy, strict=True)
        ]
        deepest = max(depths)
        row = self._recency.peek(keys[deepest - 1]) if deepest and self._recency is not None else None
        recency = [
            row.get(engine.bit, 0) if row and depth == deepest else 0
            for engine, depth in zip(engines, depths, strict=True)
        ]
        return max(range(len(totals)), key=lambda position: (totals[position], recency[position], -position))
