"""The index against plain sets: whatever happens in whatever order, both hold the same and match alike."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.core import options
from turnout.core.prefix.index import STALE, Placement, PrefixIndex
from turnout.core.prefix.keys import text_keys

GENERATIONS = 3
TTL_S = 100.0


def chain(path: list[int]) -> list[int]:
    """Keys of a path in a tree of prompts: equal keys have equal ancestors, as block hashes do."""
    return text_keys(b"".join(bytes([step]) * 64 for step in path), 7, 64, 4096)


@dataclass
class Model:
    """§2 as a dictionary of sets per generation, aged and walked block by block."""

    per_map: int
    now: float = 0.0
    opened_at: float = 0.0
    maps: list[dict[int, set[int]]] = field(default_factory=lambda: [{} for _ in range(GENERATIONS)])
    live: set[int] = field(default_factory=set)

    def close(self, now: float) -> None:
        self.maps = [{}, *self.maps[:-1]]
        self.opened_at = now

    def advance(self, now: float) -> None:
        period = TTL_S / (GENERATIONS - 1)
        while now >= self.opened_at + period:
            self.close(self.opened_at + period)
            if now - (self.opened_at + period) > period * GENERATIONS and not self.entries:
                self.opened_at = now  # nothing is held: the grid may begin anew

    def record(self, keys: list[int], bit: int, now: float) -> tuple[dict[int, set[int]], list[int]] | None:
        self.advance(now)
        keys = keys[: self.per_map]
        if bit not in self.live:
            return None
        youngest = self.maps[0]
        if all(bit in youngest.get(key, set()) for key in keys):
            return None
        if len(youngest.keys() | set(keys)) > self.per_map:
            self.close(now)
            youngest = self.maps[0]
        fresh = [key for key in keys if bit not in youngest.get(key, set())]
        for key in fresh:
            youngest.setdefault(key, set()).add(bit)
        return youngest, fresh

    def rollback(self, table: dict[int, set[int]], fresh: list[int], bit: int) -> None:
        if not any(table is held for held in self.maps):
            return
        for key in fresh:
            owners = table.get(key, set())
            owners.discard(bit)
            if not owners:
                table.pop(key, None)

    def match(self, keys: list[int], candidates: set[int]) -> dict[int, int]:
        depths: dict[int, int] = {}
        alive = candidates & self.live
        for depth, key in enumerate(keys, 1):
            alive = {bit for bit in alive if any(bit in held.get(key, set()) for held in self.maps)}
            for bit in alive:
                depths[bit] = depth
        return depths

    @property
    def entries(self) -> int:
        return sum(len(held) for held in self.maps)


paths = st.lists(st.integers(0, 1), min_size=1, max_size=9)
steps: st.SearchStrategy[tuple[str, int, list[int], int]] = st.one_of(
    st.tuples(st.just("record"), st.integers(0, 4), paths, st.just(0)),
    st.tuples(st.just("record"), st.integers(0, 4), paths, st.just(0)),
    st.tuples(st.just("rollback"), st.integers(0, 30), st.just([]), st.just(0)),
    st.tuples(st.just("wait"), st.just(0), st.just([]), st.sampled_from([1, 20, 50, 70, 400])),
    st.tuples(st.just("replace"), st.integers(0, 4), st.just([]), st.just(0)),
)


@settings(max_examples=100, deadline=None)
@given(
    script=st.lists(steps, max_size=40),
    cap=st.sampled_from([6, 15, 30, 3000]),
    slots=st.sampled_from([6, 512]),
    probe=st.lists(paths, max_size=6),
)
def test_index_equals_the_brute_force_walk(
    script: list[tuple[str, int, list[int], int]], cap: int, slots: int, probe: list[list[int]]
) -> None:
    index = PrefixIndex(options.Prefix(ttl_s=TTL_S, generations=GENERATIONS, max_blocks=cap, max_slots=slots))
    model = Model(per_map=cap // GENERATIONS)
    bits = [index.assign(0.0) for _ in range(5)]
    assigned = 0
    for bit in bits:
        assigned |= bit
    model.live = set(bits)
    placed: list[tuple[Placement, tuple[dict[int, set[int]], list[int]], int]] = []
    now = 0.0
    for step, number, path, seconds in script:
        if step == "record":
            keys = chain(path)
            placement = index.record(keys, bits[number], now)
            expected = model.record(keys, bits[number], now)
            assert (placement is None) == (expected is None)
            if placement is not None and expected is not None:
                assert placement.keys == expected[1]
                placed.append((placement, expected, bits[number]))
        elif step == "rollback" and placed:
            placement, expected, bit = placed.pop(number % len(placed))
            index.rollback(placement)
            model.rollback(*expected, bit)
        elif step == "wait":
            now += seconds
            index.advance(now)
            model.advance(now)
        elif step == "replace":
            index.retire(bits[number])
            model.live.discard(bits[number])
            bits[number] = index.assign(now)
            model.advance(now)
            if bits[number]:
                assert not any(bits[number] in owners for table in model.maps for owners in table.values())
                model.live.add(bits[number])
                assigned |= bits[number]
            else:
                model.close(now)
        for keys in [chain(path), *(chain(other) for other in probe)]:
            before = (index.entries, index.created, dict(index.evicted), index.live)
            alive = bits[0] | bits[1] | bits[2] | bits[3]
            found = index.match(keys, alive)
            assert found == model.match(keys, set(bits[:4]))
            assert before == (index.entries, index.created, dict(index.evicted), index.live)
            if found is STALE:
                assert not model.match(keys, set(bits))
        assert index.entries == model.entries <= cap
        assert index.created == index.entries + sum(index.evicted.values())
        held = {bit for table in model.maps for owners in table.values() for bit in owners}
        assert all(bit & assigned for bit in held)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 300), min_size=1, max_size=40), size=st.integers(1, 300))
def test_leaps_find_what_the_walk_finds(lengths: list[int], size: int) -> None:
    index = PrefixIndex(options.Prefix(block_bytes=64))
    keys = list(range(1, size + 1))
    alive = 0
    expected = {}
    for length in lengths:
        bit = index.assign(0.0)
        alive |= bit
        index.record(keys[:length], bit, 0.0)
        if min(length, size):
            expected[bit] = min(length, size)
    assert index.match(keys, alive) == expected
    assert index._walk(keys, sum(expected)) == expected


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=2000), more=st.binary(max_size=500), block=st.sampled_from([64, 100, 256]))
def test_keys_of_a_prefix_are_a_prefix_of_the_keys(data: bytes, more: bytes, block: int) -> None:
    shorter = text_keys(data, 3, block, 4096)
    assert len(shorter) == len(data) // block
    assert text_keys(data + more, 3, block, 4096)[: len(shorter)] == shorter
