"""The store against a plain dictionary, and what no sequence of another tenant's requests can change."""

from __future__ import annotations

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.core.response_cache.guard import features
from turnout.core.response_cache.key import CacheKey
from turnout.core.response_cache.store import Answer, Bounds, Place, ResponseStore

BASE = CacheKey(
    tenant="", dialect="openai", path="/v1/chat/completions", kind="json", model="m", weight_version="",
    bundle_version="", knobs_hash=0, system=b"", tools=b"", format=b"", sampling=b"", history=b"", rest=b"", last=b"",
)  # fmt: skip
SAME = features("the same text")
ANGLES = [np.array([np.cos(a), np.sin(a)], dtype=np.float32) for a in np.linspace(0, 1.5, 12)]

operations = st.lists(
    st.tuples(
        st.sampled_from(["put", "exact", "semantic"]),
        st.sampled_from("abc"),
        st.integers(0, 5),
        st.integers(0, 11),
        st.integers(0, 400),
        st.integers(0, 3),
    ),
    max_size=60,
)
Operation = tuple[str, str, int, int, int, int]


def run(store: ResponseStore, steps: list[Operation], only: str = "") -> list[object]:
    """Carry the steps out at one a second; returns what the looks of `only` (or of everybody) found."""
    seen: list[object] = []
    for now, (what, tenant, knobs, angle, size, cluster) in enumerate(steps):
        key = msgspec.structs.replace(BASE, tenant=tenant, knobs_hash=knobs, last=b"%d" % angle)
        place = Place((cluster, (cluster + 1) % 4), "e", ANGLES[angle], SAME)
        if what == "put":
            body = f"{tenant}:{now}".encode().ljust(size, b".")
            store.put(key, Answer(status=200, head=(), body=body, source=str(now)), float(now), place)
            continue
        if what == "exact":
            match = store.exact(key, float(now))
        else:
            match = store.semantic(key, place, lambda _: 0.95, float(now), strict=True)
        if match is not None:
            assert match.answer.body.startswith(f"{tenant}:".encode())
        if not only or tenant == only:
            seen.append((now, None if match is None else match.answer.source))
    return seen


@settings(max_examples=100, deadline=None)
@given(operations)
def test_no_sequence_of_one_tenant_changes_what_another_gets(steps: list[Operation]) -> None:
    bounds = Bounds(buckets_per_tenant=3, entries_per_bucket=2, tenant_bytes=7500, total_bytes=10**6, ttl_s=20.0)
    together = run(ResponseStore(bounds), steps, only="a")
    alone_steps = [step if step[1] == "a" else ("exact", "a-stranger", *step[2:]) for step in steps]
    assert together == run(ResponseStore(bounds), alone_steps, only="a")


@settings(max_examples=100, deadline=None)
@given(operations)
def test_counters_equal_contents_and_bounds_hold(steps: list[Operation]) -> None:
    bounds = Bounds(
        tenants=2, buckets_per_tenant=2, entries_per_bucket=2, tenant_bytes=6000, total_bytes=9000, ttl_s=20.0
    )
    store = ResponseStore(bounds)
    run(store, steps)
    stats = store.stats()
    assert len(stats) <= 2
    assert store.entries == sum(held.entries for held in stats.values())
    assert store.bytes == sum(held.bytes for held in stats.values()) <= 9000
    for tenant, held in stats.items():
        keys = store.keys(tenant)
        assert held.entries == len(keys) <= 4
        assert held.bytes <= 6000


@settings(max_examples=100, deadline=None)
@given(operations)
def test_an_unbounded_store_is_a_dictionary_with_a_ttl(steps: list[Operation]) -> None:
    store = ResponseStore(Bounds(ttl_s=20.0))
    plain: dict[tuple[str, int, int], int] = {}
    for now, step in enumerate(steps):
        what, tenant, knobs, angle, _, _ = step
        name = (tenant, knobs, angle)
        key = msgspec.structs.replace(BASE, tenant=tenant, knobs_hash=knobs, last=b"%d" % angle)
        if what == "put":
            store.put(key, Answer(status=200, head=(), body=b"", source=str(now)), float(now))
            plain[name] = now
        else:
            stored = plain.get(name)
            match = store.exact(key, float(now))
            fresh = stored is not None and now - stored <= 20
            assert (match.answer.source if match is not None else None) == (str(stored) if fresh else None)
