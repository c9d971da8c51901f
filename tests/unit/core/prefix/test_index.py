import random
import tracemalloc

import pytest

from turnout.core import options
from turnout.core.prefix.index import MISS, STALE, PrefixIndex

FAR = 1e9
BYTES_PER_ENTRY = 160  # scheduling §2
FIXED_BYTES = 50_000  # slots, and who got a first block last: bounded, whatever the number of entries


def index_of(**settings: object) -> PrefixIndex:
    return PrefixIndex(options.Prefix(**{"ttl_s": 300.0, "generations": 3, **settings}))  # type: ignore[arg-type]


def chain(*names: int) -> list[int]:
    """Keys of a chain: what comes before a block is part of its key."""
    key = 17
    keys = []
    for name in names:
        key = hash((key, name))
        keys.append(key)
    return keys


LONG = chain(*range(100))


def test_depth_is_contiguous_per_owner() -> None:
    index = index_of()
    a, b, c = (index.assign(0.0) for _ in range(3))
    index.record(LONG[:10], a, 0.0)
    index.record(LONG[:4], b, 0.0)
    assert index.match(LONG[:20], a | b | c) == {a: 10, b: 4}


def test_only_candidates_are_matched() -> None:
    index = index_of()
    a, b = index.assign(0.0), index.assign(0.0)
    index.record(LONG[:10], a, 0.0)
    assert index.match(LONG, b) is MISS


def test_block_beyond_a_hole_counts_nothing() -> None:
    index = index_of()
    a = index.assign(0.0)
    first = index.record(LONG[:4], a, 0.0)
    index.record(LONG[:6], a, 0.0)
    assert first is not None
    index.rollback(first)
    assert index.match(LONG, a) is MISS
    index.record(LONG[:2], a, 0.0)
    assert index.match(LONG, a) == {a: 2}
    index.record(LONG[:4], a, 0.0)
    assert index.match(LONG, a) == {a: 6}


def holed_index() -> tuple[PrefixIndex, int]:
    """Blocks 4 and 5 are held, the four before them were rolled back."""
    index = index_of()
    a = index.assign(0.0)
    first = index.record(LONG[:4], a, 0.0)
    index.record(LONG[:6], a, 0.0)
    assert first is not None
    index.rollback(first)
    return index, a


def test_record_over_a_hole_fills_it() -> None:
    index, a = holed_index()
    assert index.record(LONG[:6], a, 0.0) is not None
    assert index.match(LONG, a) == {a: 6}


def test_hole_is_still_a_hole_when_its_map_is_no_longer_the_youngest() -> None:
    index, a = holed_index()
    index.advance(150.0)
    index.record(LONG[:1], a, 150.0)
    assert index.match(LONG[:6], a) == {a: 1}


def test_request_larger_than_cap_keeps_its_head() -> None:
    """T16: recording one request never evicts its own blocks; what is beyond the share of a map is left out."""
    index = index_of(max_blocks=30)
    a = index.assign(0.0)
    index.record(LONG, a, 0.0)
    assert index.match(LONG, a) == {a: 10}
    assert index.truncated == 90
    assert index.entries <= 30


def test_stale_owner_is_never_picked() -> None:
    """T17: a retired owner is told apart from nobody, and a live owner of a shallower block is still found."""
    index = index_of()
    a, b = index.assign(0.0), index.assign(0.0)
    index.record(LONG[:10], a, 0.0)
    index.retire(a)
    assert index.match(LONG, b) is STALE
    assert index.match(chain(7), b) is MISS
    index.record(LONG[:3], b, 0.0)
    assert index.match(LONG, a | b) == {b: 3}


def test_retire_is_idempotent_and_counts_one_purge() -> None:
    index = index_of()
    a = index.assign(0.0)
    index.retire(a)
    index.retire(a)
    index.retire(0)
    assert (index.purges, index.slots) == (1, 0)


def test_retired_slot_returns_only_after_every_map_that_could_hold_it() -> None:
    index = index_of(max_slots=1)
    a = index.assign(0.0)
    index.record(LONG[:3], a, 0.0)
    index.retire(a)
    assert index.assign(1.0) == 0
    assert index.assign(1.0) == 0
    assert index.slots_exhausted == 2
    reused = next(bit for bit in (index.assign(1.0) for _ in range(3)) if bit)
    assert reused == a
    assert index.match(LONG, reused) is MISS


def test_endpoint_without_a_slot_is_not_recorded() -> None:
    assert index_of().record(LONG, 0, 0.0) is None


def test_retired_endpoint_is_not_recorded() -> None:
    index = index_of()
    a = index.assign(0.0)
    index.retire(a)
    assert index.record(LONG, a, 0.0) is None
    assert index.entries == 0


@pytest.mark.parametrize("recorded_at", [0.0, 1.0, 149.0, 150.0, 299.9])
def test_unused_entry_lives_for_the_ttl_and_not_half_as_long_again(recorded_at: float) -> None:
    index = index_of()
    a = index.assign(0.0)
    index.record(LONG[:3], a, recorded_at)
    index.advance(recorded_at + 300.0)
    assert index.match(LONG, a) == {a: 3}
    index.advance(recorded_at + 450.1)
    assert index.match(LONG, a) is MISS
    assert index.evicted["ttl"] == 3


def test_recording_again_refreshes() -> None:
    index = index_of()
    a = index.assign(0.0)
    for now in range(0, 3000, 100):
        index.record(LONG[:3], a, float(now))
    assert index.match(LONG, a) == {a: 3}


def test_long_silence_is_caught_up_at_once_and_keeps_ageing_right() -> None:
    index = index_of()
    a = index.assign(FAR)
    index.record(LONG[:3], a, FAR + 10.0)
    index.advance(FAR + 310.0)
    assert index.match(LONG, a) == {a: 3}
    index.advance(FAR + 461.0)
    assert index.match(LONG, a) is MISS


def test_rollback_clears_exactly_what_the_record_set() -> None:
    index = index_of()
    a, b = index.assign(0.0), index.assign(0.0)
    index.record(LONG[:4], a, 0.0)
    index.record(LONG[:2], b, 0.0)
    placement = index.record(LONG[:8], a, 0.0)
    assert placement is not None
    index.rollback(placement)
    assert index.match(LONG, a | b) == {a: 4, b: 2}
    assert index.evicted["rollback"] == 4


def test_rollback_after_the_map_was_dropped_touches_nothing() -> None:
    index = index_of()
    a = index.assign(0.0)
    placement = index.record(LONG[:4], a, 0.0)
    assert placement is not None
    index.advance(10_000.0)
    index.record(LONG[:4], a, 10_000.0)
    index.rollback(placement)
    assert index.match(LONG, a) == {a: 4}


def test_same_request_again_records_nothing_new() -> None:
    index = index_of()
    a = index.assign(0.0)
    index.record(LONG, a, 0.0)
    assert index.record(LONG, a, 1.0) is None
    assert index.record(LONG[:5], a, 1.0) is None


def test_zero_cap_is_off() -> None:
    index = index_of(max_blocks=0)
    a = index.assign(0.0)
    assert not index.enabled
    assert index.record(LONG, a, 0.0) is None


def test_no_cap_is_unbounded() -> None:
    index = index_of(max_blocks=None)
    a = index.assign(0.0)
    index.record(LONG, a, 0.0)
    assert index.entries == 100


def test_last_endpoint_of_a_first_block_is_remembered() -> None:
    index = index_of()
    a, b = index.assign(0.0), index.assign(0.0)
    index.record(LONG, a, 0.0)
    index.record(LONG[:1], b, 0.0)
    assert index.recent(LONG[0]) == b
    assert index.recent(1) == 0


def test_refcount_forgets_blocks_of_no_open_attempt() -> None:
    index = PrefixIndex(options.Prefix(retention="refcount"))
    bit = index.assign(0.0)
    index.record([1, 2, 3], bit, 0.0)
    index.record([1, 2, 9], bit, 0.0)
    index.release([1, 2, 3], bit)
    assert index.match([1, 2, 3], bit) == {bit: 2}
    assert index.match([1, 2, 9], bit) == {bit: 3}
    index.release([1, 2, 9], bit)
    assert index.match([1], bit) == {}
    assert (index.entries, index.created, index.evicted["refcount"]) == (0, 4, 4)


def test_index_memory_is_flat() -> None:
    """T68: an hour of endpoints that come and go and of prompts that nobody repeats stays within the byte budget."""
    rng = random.Random(68)
    most = 3000
    # Only what is allocated from here, compiled code included: threads that other tests left are none of its business.
    ours = [tracemalloc.Filter(True, path) for path in (__file__, "*/turnout/core/*")]

    def traced() -> int:
        traces = tracemalloc.take_snapshot().filter_traces(ours).statistics("filename")
        return sum(trace.size for trace in traces)

    tracemalloc.start()
    try:
        index = index_of(max_blocks=most)
        empty = traced()
        bits = [index.assign(0.0) for _ in range(8)]
        sizes = []
        for second in range(3600):
            now = float(second)
            keys = [second % 50 + 1] + [rng.getrandbits(64) for _ in range(39)]  # 50 system prompts
            index.advance(now)
            index.record(keys, rng.choice(bits), now)
            if second % 7 == 0:  # one leaves, one comes
                index.retire(bits.pop(0))
                bits.append(index.assign(now))
            if second >= 600 and second % 60 == 0:
                sizes.append(traced() - empty)
            assert index.entries <= most
    finally:
        tracemalloc.stop()
    assert max(sizes) <= BYTES_PER_ENTRY * most + FIXED_BYTES
    assert max(sizes[25:]) <= 1.1 * max(sizes[:25])
