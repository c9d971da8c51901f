from __future__ import annotations

from turnout.sim.replay.store import PrefixStore


def test_what_sequences_hold_is_bounded_apart_from_what_is_kept() -> None:
    store = PrefixStore(hold_max=4, capacity=6)
    assert store.admit([], 0, 4)
    assert not store.admit([], 0, 1)
    store.complete([1, 2, 3, 4])
    store.release([1, 2, 3, 4], 0)
    assert store.admit([], 0, 3)
    # 4 idle and 3 private are one more than the capacity: the deepest block of the oldest chain is gone.
    assert store.found([1, 2, 3, 4], 4) == 3


def test_changes_are_logged_but_not_generated_blocks() -> None:
    store = PrefixStore(hold_max=3, capacity=3, logging=True)
    store.admit([], 0, 3)
    store.complete([7, 8])
    store.keep([-1])
    store.release([7, 8], 0)
    assert store.stored == [7, 8]
    store.admit([7, 8], 2, 1)
    assert store.removed == []
    store.release([7, 8], 1)
    store.admit([], 0, 3)
    assert store.removed == [8, 7]


def test_a_block_computed_twice_is_held_once() -> None:
    store = PrefixStore(hold_max=8, capacity=8, logging=True)
    store.admit([], 0, 2)
    store.admit([], 0, 2)
    store.complete([1, 2])
    store.complete([1, 2])
    assert (store.used, store.stored) == (2, [1, 2])
    store.release([1, 2], 0)
    store.release([1, 2], 0)
    assert (store.used, store.cached) == (0, 2)
