"""How long a look-up takes: `OPENBLAS_NUM_THREADS=1 PYTHONPATH=src python benchmarks/bench_response_cache.py`.

Exact look-ups; semantic ones over 100,000 entries of 256 dimensions in the buckets they would lie in (1,024 each, four
of them looked at); and over four full buckets of dimension 1,024. Bars: 50 µs, 1 ms and 5 ms at p99, and the resident
memory of the 100,000 entries beside the bytes that the store counts. Times are CPU times of this thread, so that a busy
machine does not count; the matrix products then run in it, too.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from turnout.core.response_cache.guard import features
from turnout.core.response_cache.key import CacheKey
from turnout.core.response_cache.store import Answer, Bounds, Place, ResponseStore
from turnout.core.response_cache.vectors import Vector

_clock = time.thread_time_ns
KEY = CacheKey(
    tenant="acme", dialect="openai", path="/v1/chat/completions", kind="json", model="m", weight_version="",
    bundle_version="v1", knobs_hash=7, system=b"s" * 16, tools=b"t" * 16, format=b"f" * 16, sampling=b"p" * 16,
    history=b"h" * 16, rest=b"r" * 16, last=b"",
)  # fmt: skip
LOOKS = 3000
ENTRIES = 100_000
BUCKET = 1024
TOP_P = 4


def main() -> None:
    """Run all figures."""
    roomy = Bounds(tenant_bytes=2**31, total_bytes=2**31)
    before = _resident()
    store, vectors = _filled(roomy, ENTRIES, 256)
    gc.collect()
    counted, resident = store.bytes / 2**20, (_resident() - before - vectors.nbytes) / 2**20
    print(f"{store.entries} entries of 256 dimensions: counted {counted:.0f} MiB, resident {resident:.0f} MiB")
    rng = np.random.default_rng(2)
    keys = [msgspec.structs.replace(KEY, last=_last(int(rng.integers(ENTRIES)))) for _ in range(LOOKS)]
    _print("exact, match", [functools.partial(store.exact, key, 1.0) for key in keys])
    missing = [msgspec.structs.replace(key, last=b"never") for key in keys]
    _print("exact, miss", [functools.partial(store.exact, key, 1.0) for key in missing])
    _print("semantic, 100,000 of 256", _looks(store, vectors, ENTRIES // BUCKET))
    del store, vectors
    full, vectors = _filled(roomy, TOP_P * BUCKET, 1024)
    _print("semantic, 4 times 1,024 of 1,024", _looks(full, vectors, TOP_P))


def _filled(bounds: Bounds, entries: int, dim: int) -> tuple[ResponseStore, Vector]:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(entries, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = ResponseStore(bounds)
    text = features("the same question")
    for number in range(entries):
        answer = Answer(status=200, head=(), body=b'{"id":"%d"}' % number, source=str(number))
        place = Place((number // BUCKET,), "e", vectors[number], text)
        store.put(msgspec.structs.replace(KEY, last=_last(number)), answer, 0.0, place)
    return store, vectors


def _looks(store: ResponseStore, vectors: Vector, buckets: int) -> list[Callable[[], object]]:
    rng = np.random.default_rng(3)
    text = features("the same question")
    looks: list[Callable[[], object]] = []
    for _ in range(LOOKS):
        near = vectors[int(rng.integers(len(vectors)))] + rng.normal(scale=0.01, size=vectors.shape[1]).astype(
            np.float32
        )
        near = (near / np.linalg.norm(near)).astype(np.float32)
        clusters = tuple(rng.choice(buckets, size=min(TOP_P, buckets), replace=False).tolist())
        place = Place(clusters, "e", near, text)
        looks.append(functools.partial(store.semantic, KEY, place, _least, 1.0, strict=True))
    return looks


def _least(_: int) -> float:
    return 0.95


def _last(number: int) -> bytes:
    return number.to_bytes(16, "big")


def _print(name: str, looks: list[Callable[[], object]]) -> None:
    spans = []
    for look in looks:
        started = _clock()
        look()
        spans.append(_clock() - started)
    ordered = sorted(spans[100:])
    p50, p99 = ordered[len(ordered) // 2] / 1000, ordered[int(len(ordered) * 0.99)] / 1000
    print(f"{name:<30} p50 {p50:8.1f} µs   p99 {p99:8.1f} µs")


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
