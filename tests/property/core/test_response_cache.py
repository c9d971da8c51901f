"""The store against a plain dictionary, and what no sequence of another tenant's requests can change."""

from __future__ import annotations

import msgspec
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from turnout.core.response_cache.guard import features
from turnout.core.response_cache.key import CacheKey, shape
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


LEFT_OUT = ("model", "stream", "stream_options", "turnout", "user", "metadata", "prompt_cache_key")
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(-2, 2), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)
names = st.one_of(
    st.sampled_from([*LEFT_OUT, "system", "tools", "tool_choice", "temperature", "max_tokens", "response_format", "n"]),
    st.text(min_size=1, max_size=8).filter(lambda name: name not in ("messages", "input", "contents", "prompt")),
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=5)}),
    min_size=1,
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(names, values, max_size=5), messages, names, values)
def test_any_member_that_is_not_left_out_separates(
    body: dict[str, object], said: list[object], name: str, value: object
) -> None:
    before = {**body, "messages": said}
    after = {**before, name: value}
    same = msgspec.json.encode(before.get(name, msgspec.UNSET) if name in before else b"absent") == msgspec.json.encode(
        value
    )
    assert (shape(before).digests == shape(after).digests) == (name in LEFT_OUT or same)


SYSTEM, USER = {"role": "system", "content": ""}, {"role": "user", "content": ""}


@settings(max_examples=100, deadline=None)
@given(messages, messages)
@example([SYSTEM, USER], [USER, SYSTEM])
def test_any_other_conversation_separates(one: list[object], other: list[object]) -> None:
    assert (shape({"messages": one}).digests == shape({"messages": other}).digests) == (one == other)
