"""The bounded store: isolation of tenants, caps, recency, TTL, semantic matches; the bugs of others by their names."""

from __future__ import annotations

import asyncio
import os
import threading
import tracemalloc
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from turnout.core.response_cache.guard import Kind, features
from turnout.core.response_cache.key import CacheKey
from turnout.core.response_cache.store import (
    BUCKET_BYTES,
    ENTRY_BYTES,
    Answer,
    Bounds,
    Match,
    Place,
    ResponseStore,
)
from turnout.core.response_cache.thresholds import threshold_of
from turnout.core.response_cache.vectors import Vector

KEY = CacheKey(
    tenant="acme", dialect="openai", path="/v1/chat/completions", kind="json", model="m", weight_version="",
    bundle_version="v1", knobs_hash=7, system=b"s", tools=b"t", format=b"f", sampling=b"p", history=b"h", rest=b"r", last=b"l",
)  # fmt: skip
FLOOD = int(os.environ.get("TURNOUT_FLOOD", "2000"))
"""Entries of the tenant that floods; a million take ten seconds."""
OTHER = {str: "other", int: 99, bytes: b"other"}


def answer(body: bytes = b"{}", source: str = "call-1") -> Answer:
    return Answer(status=200, head=((b"content-type", b"application/json"),), body=body, source=source)


def unit(*values: float) -> Vector:
    vector = np.array(values, dtype=np.float32)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def place(vector: Vector, *clusters: int, text: str = "same words") -> Place:
    return Place(clusters or (0,), "e", vector, features(text))


def least(value: float) -> Callable[[int], float]:
    return lambda _: value


def key(**changes: str | int | bytes) -> CacheKey:
    return msgspec.structs.replace(KEY, **changes)


def look(
    store: ResponseStore, wanted: CacheKey, where: Place, threshold: float = 0.95, now: float = 0.0
) -> Match | None:
    return store.semantic(wanted, where, least(threshold), now, strict=False)


def test_key_covers_what_changes_the_answer() -> None:
    store = ResponseStore(Bounds())
    where = place(unit(1, 0))
    store.put(KEY, answer(), 0.0, where)
    for field in CacheKey.__struct_fields__:
        changed = msgspec.structs.replace(KEY, **{field: OTHER[type(getattr(KEY, field))]})
        assert store.exact(changed, 0.0) is None, field
        if field != "last":
            assert look(store, changed, where) is None, field
    assert store.exact(KEY, 0.0) is not None
    assert look(store, key(last=b"another"), where) is not None


def test_tenant_in_key_on_every_path() -> None:
    store = ResponseStore(Bounds())
    where = place(unit(1, 0))
    paths = [
        ("openai", "/v1/chat/completions"),
        ("openai", "/v1/completions"),
        ("openai", "/v1/responses"),
        ("anthropic", "/v1/messages"),
        ("gemini", "/v1beta/models/m:generateContent"),
    ]
    for dialect, path in paths:
        for kind in ("json", "sse"):
            mine = key(dialect=dialect, path=path, kind=kind)
            store.put(mine, answer(), 0.0, where)
            theirs = msgspec.structs.replace(mine, tenant="rival")
            assert store.exact(theirs, 0.0) is None
            assert look(store, theirs, where) is None


def test_tenant_cannot_flush_tenant() -> None:
    store = ResponseStore(Bounds(buckets_per_tenant=2))
    store.put(key(tenant="victim"), answer(), 0.0)
    for knobs in range(50):
        store.put(key(tenant="noisy", knobs_hash=knobs), answer(), 0.0)
    assert store.exact(key(tenant="victim"), 0.0) is not None
    assert [held.knobs_hash for held in store.keys("noisy")] == [48, 49]


def test_a_flood_of_bytes_stays_inside_its_tenant() -> None:
    bounds = Bounds(tenant_bytes=6000, total_bytes=10**9)
    store = ResponseStore(bounds)
    store.put(key(tenant="victim"), answer(), 0.0)
    for number in range(FLOOD):
        store.put(key(tenant="noisy", last=b"%d" % number), answer(b"x" * 100), 0.0)
        assert store.stats()["noisy"].bytes <= 6000
    assert store.exact(key(tenant="victim"), 0.0) is not None


def test_the_total_takes_from_whoever_holds_most() -> None:
    one = answer(b"x" * 100)
    size = one.size + ENTRY_BYTES
    store = ResponseStore(Bounds(total_bytes=2 * (2 * size + BUCKET_BYTES) + BUCKET_BYTES + size - 1))
    for tenant, count in (("b", 2), ("a", 2)):
        for number in range(count):
            store.put(key(tenant=tenant, last=b"%d" % number), one, 0.0)
    store.put(key(tenant="c"), one, 0.0)  # a and b hold equally much: the smaller name gives way
    assert {name: held.entries for name, held in store.stats().items()} == {"b": 2, "a": 1, "c": 1}
    assert store.exact(key(tenant="a", last=b"0"), 0.0) is None
    assert store.evictions["total_bytes"] == 1


def test_knob_churn_is_bounded() -> None:
    """T6: each of the bounds alone holds what a caller can turn."""
    for bounds, entries in (
        (Bounds(buckets_per_tenant=16, entries_per_bucket=4), 64),
        (Bounds(buckets_per_tenant=16), 16 * 31),
        (Bounds(entries_per_bucket=4), 97 * 4),
        (Bounds(tenant_bytes=200_000), 111),
        (Bounds(total_bytes=200_000), 111),
    ):
        store = ResponseStore(bounds)
        for number in range(3000):
            name = key(knobs_hash=number % 97, last=b"%d" % number)
            store.put(name, answer(b"y" * (number % 300)), 0.0, place(unit(1, number)))
        stats = store.stats()["acme"]
        assert stats.entries <= entries, bounds
        assert stats.bytes <= min(bounds.tenant_bytes, bounds.total_bytes)
        assert len({held.knobs_hash for held in store.keys("acme")}) <= bounds.buckets_per_tenant
        assert store.bytes == stats.bytes
        assert store.entries == stats.entries


def test_no_task_or_thread_per_bucket() -> None:
    async def churn() -> tuple[int, int]:
        store = ResponseStore(Bounds(buckets_per_tenant=100))
        for number in range(10_000):
            store.put(key(knobs_hash=number), answer(), 0.0)
        return len(asyncio.all_tasks()), store.evictions["buckets"]

    threads = threading.active_count()
    assert asyncio.run(churn()) == (1, 9_900)
    assert threading.active_count() == threads


def test_scan_keeps_recency() -> None:
    store = ResponseStore(Bounds(entries_per_bucket=3))
    for number, vector in enumerate((unit(1, 0), unit(0.9, 0.1), unit(0, 1))):
        store.put(key(last=b"%d" % number), answer(source=str(number)), 0.0, place(vector))
    match = look(store, key(last=b"x"), place(unit(0.9, 0.1)), 0.9)  # scans 0, matches 1
    assert match is not None
    assert match.answer.source == "1"
    store.put(key(last=b"3"), answer(), 0.0, place(unit(0.5, 0.5)))
    store.put(key(last=b"4"), answer(), 0.0, place(unit(0.5, 0.5)))
    assert [held.last for held in store.keys("acme")] == [b"1", b"3", b"4"]
    assert store.evictions["entries"] == 2


def test_scans_keep_recency_for_the_bytes_of_the_tenant_too() -> None:
    size = answer(source="0").size + ENTRY_BYTES
    store = ResponseStore(Bounds(tenant_bytes=3 * (size + BUCKET_BYTES + 64)))
    for number, vector in enumerate((unit(1, 0), unit(0.9, 0.1), unit(0, 1))):
        store.put(key(last=b"%d" % number), answer(source=str(number)), 0.0, place(vector, number))
    assert look(store, key(last=b"x"), place(unit(-1, -1), 0, 1), 0.9) is None  # scans 0 and 1, matches none
    match = look(store, key(last=b"x"), place(unit(0.9, 0.1), 0, 1), 0.999)  # scans 0 and 1, matches 1
    assert match is not None
    assert match.answer.source == "1"
    store.exact(key(last=b"never"), 0.0)
    assert [held.last for held in store.keys("acme")] == [b"0", b"2", b"1"]
    for number in (3, 4):
        store.put(key(last=b"%d" % number), answer(), 0.0, place(unit(1, 1), number))
    assert [held.last for held in store.keys("acme")] == [b"1", b"3", b"4"]


def test_lookups_move_bucket_and_tenant() -> None:
    store = ResponseStore(Bounds(tenants=2, buckets_per_tenant=2))
    for tenant in ("a", "b"):
        store.put(key(tenant=tenant), answer(), 0.0)
    store.exact(key(tenant="a"), 0.0)
    store.put(key(tenant="c"), answer(), 0.0)
    assert sorted(store.stats()) == ["a", "c"]


def test_TTLExpiry() -> None:
    store = ResponseStore(Bounds(ttl_s=10.0))
    where = place(unit(1, 0))
    store.put(KEY, answer(), 0.0, where)
    assert store.exact(KEY, 10.0) is not None
    assert store.exact(KEY, 10.001) is None
    assert (store.entries, store.bytes, store.evictions["ttl"]) == (0, 0, 1)
    store.put(KEY, answer(), 0.0, where)
    assert look(store, key(last=b"x"), where, now=10.001) is None
    assert store.entries == 0


def test_IdenticalEmbeddingHits() -> None:
    store = ResponseStore(Bounds())
    store.put(KEY, answer(b"body"), 5.0, place(unit(0.6, 0.8)))
    match = look(store, key(last=b"x"), place(unit(0.6, 0.8)), now=7.5)
    assert match is not None
    assert (match.kind, match.answer.body, match.age_s) == ("semantic", b"body", 2.5)


def test_NearDuplicateHitsAboveThreshold_and_BelowThresholdMisses() -> None:
    store = ResponseStore(Bounds())
    store.put(KEY, answer(), 0.0, place(unit(1, 0)))
    near = place(unit(0.96, 0.28))
    assert look(store, key(last=b"x"), near, 0.95) is not None
    assert look(store, key(last=b"x"), near, 0.97) is None


def test_PerClusterThresholdOverride() -> None:
    store = ResponseStore(Bounds())
    store.put(KEY, answer(), 0.0, place(unit(1, 0), 3))
    near = place(unit(0.96, 0.28), 3)
    asked = key(last=b"x")
    assert store.semantic(asked, near, threshold_of(0.99, None, {3: 0.9}, None), 0.0, strict=False) is not None
    assert store.semantic(asked, near, threshold_of(0.9, None, {3: 0.99}, None), 0.0, strict=False) is None
    assert store.semantic(asked, near, threshold_of(0.99, 0.9, {}, None), 0.0, strict=False) is not None
    assert store.semantic(asked, near, threshold_of(0.9, None, {}, 0.97), 0.0, strict=False) is None
    assert threshold_of(0.95, None, {}, 0.5)(0) == 0.95


def test_LookupScansAllTopPClusters() -> None:
    store = ResponseStore(Bounds())
    store.put(KEY, answer(), 0.0, place(unit(1, 0), 5, 1, 2))  # filed under the nearest only
    assert look(store, key(last=b"x"), place(unit(1, 0), 1, 2, 3)) is None
    assert look(store, key(last=b"x"), place(unit(1, 0), 1, 2, 5)) is not None


def test_the_most_similar_wins_over_all_buckets_and_equal_ones_by_age() -> None:
    store = ResponseStore(Bounds())
    store.put(key(last=b"1"), answer(source="far"), 0.0, place(unit(0.97, 0.24), 0))
    store.put(key(last=b"2"), answer(source="near"), 0.0, place(unit(1, 0), 1))
    store.put(key(last=b"3"), answer(source="newest"), 0.0, place(unit(1, 0), 2))
    match = look(store, key(last=b"x"), place(unit(1, 0), 0, 1, 2), 0.9)
    assert match is not None
    assert match.answer.source == "newest"


def test_the_guard_lets_the_next_best_through_and_counts() -> None:
    store = ResponseStore(Bounds())
    store.put(key(last=b"1"), answer(source="seven"), 0.0, place(unit(1, 0), text="Is 7 prime?"))
    store.put(key(last=b"2"), answer(source="five"), 0.0, place(unit(0.97, 0.24), text="is 5 prime"))
    match = look(store, key(last=b"x"), place(unit(1, 0), text="is 5 prime?"), 0.9)
    assert match is not None
    assert match.answer.source == "five"
    assert store.rejections == {Kind.NUMBERS: 1}


def test_other_embedders_vectors_are_never_compared() -> None:
    store = ResponseStore(Bounds())
    store.put(KEY, answer(), 0.0, place(unit(1, 0)))
    foreign = msgspec.structs.replace(place(unit(1, 0)), embedder="f")
    assert look(store, key(last=b"x"), foreign) is None


def test_StoreDropsOversizedBodies() -> None:
    store = ResponseStore(Bounds(body_bytes=10))
    assert not store.put(KEY, answer(b"x" * 11), 0.0)
    assert store.put(KEY, answer(b"x" * 10), 0.0)
    assert not ResponseStore(Bounds(tenant_bytes=100)).put(KEY, answer(), 0.0)


def test_EmptyEmbeddingMisses() -> None:
    store = ResponseStore(Bounds())
    store.put(KEY, answer(), 0.0)  # stored without an embedding: exact only
    assert look(store, key(last=b"x"), place(unit(1, 0), -1)) is None
    assert store.exact(KEY, 0.0) is not None


def isolated_by(**change: str | int | bytes) -> bool:
    """Whether a key that differs only there finds neither the equal answer nor the near one."""
    store = ResponseStore(Bounds())
    where = place(unit(1, 0))
    store.put(KEY, answer(), 0.0, where)
    other = key(**change)
    return store.exact(other, 0.0) is None and look(store, msgspec.structs.replace(other, last=b"x"), where) is None


def test_BucketKeyIsolatesByVersion() -> None:
    assert isolated_by(bundle_version="v2")
    assert isolated_by(weight_version="w2")


def test_BucketKeyIsolatesByKnobs() -> None:
    assert isolated_by(knobs_hash=8)


def test_BucketIsolationAcrossFormats() -> None:
    for change in ({"dialect": "anthropic"}, {"path": "/v1/messages"}, {"kind": "sse"}, {"format": b"x"}):
        assert isolated_by(**change)


def test_BucketIsolationAcrossInstallations() -> None:
    assert isolated_by(tenant="rival")
    assert not isolated_by()


def test_BucketMapEvictsBeyondPerInstallationCap() -> None:
    store = ResponseStore(Bounds(buckets_per_tenant=3))
    for knobs in range(5):
        store.put(key(knobs_hash=knobs), answer(), 0.0)
    assert [held.knobs_hash for held in store.keys("acme")] == [2, 3, 4]
    assert store.evictions["buckets"] == 2


def test_PerInstallationBucketCapIsolatesTenants() -> None:
    store = ResponseStore(Bounds(buckets_per_tenant=2))
    for knobs in range(2):
        for tenant in ("a", "b"):
            store.put(key(tenant=tenant, knobs_hash=knobs), answer(), 0.0)
    assert [held.knobs_hash for held in store.keys("a")] == [held.knobs_hash for held in store.keys("b")] == [0, 1]
    assert store.evictions["buckets"] == 0


def test_the_same_question_again_replaces_its_answer() -> None:
    store = ResponseStore(Bounds())
    where = place(unit(1, 0))
    store.put(KEY, answer(b"old"), 0.0, where)
    store.put(KEY, answer(b"new"), 1.0, where)
    store.put(KEY, answer(b"newest"), 2.0, place(unit(0, 1), 4))
    match = store.exact(KEY, 2.0)
    assert match is not None
    assert (match.answer.body, store.entries, len(store.keys("acme"))) == (b"newest", 1, 1)
    assert look(store, key(last=b"x"), where) is None


def test_what_leaves_takes_its_entries_along() -> None:
    store = ResponseStore(Bounds())
    for version in ("v1", "v2"):
        for tenant in ("a", "b"):
            store.put(key(tenant=tenant, bundle_version=version), answer(), 0.0, place(unit(1, 0)))
    assert store.drop(lambda held: held.bundle_version != "v1", "version") == 2
    assert store.evictions["version"] == 2
    assert store.drop(lambda held: held.tenant != "a", "purge") == 1
    assert sorted(store.stats()) == ["b"]
    assert store.entries == 1


def test_what_a_replay_saved_is_counted_per_tenant() -> None:
    store = ResponseStore(Bounds())
    store.put(KEY, answer(), 0.0)
    store.matched("acme", 500)
    store.matched("nobody", 1)
    assert (store.stats()["acme"].matches, store.stats()["acme"].saved_nusd) == (1, 500)


@pytest.mark.parametrize(("buckets", "dim"), [(4, 256), (300, 256), (4, 0), (300, 0)])
def test_the_byte_budget_holds_for_what_the_interpreter_takes(buckets: int, dim: int) -> None:
    store = ResponseStore(Bounds(buckets_per_tenant=1000, tenant_bytes=2**20, total_bytes=2**21))
    vectors = np.eye(dim, dtype=np.float32)

    def fill() -> None:
        for number in range(900):
            digest = number.to_bytes(16, "big")
            where = Place((0,), "e", vectors[number % dim].copy(), features(f"text {number}")) if dim else None
            filed = key(
                tenant=f"t{number % 3}", knobs_hash=2**62 + number % buckets, last=digest, history=bytes(bytearray(16))
            )
            store.put(filed, answer(bytes(bytearray(300)), f"call-{number:026d}"), 0.0, where)

    fill()  # fills the free lists of the allocator, too
    store.drop(lambda _: False, "purge")
    assert (store.bytes, store.entries) == (0, 0)
    tracemalloc.start()
    fill()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.4 * store.bytes < taken <= store.bytes <= 2**21
