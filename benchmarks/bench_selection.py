"""How long one selection takes: `PYTHONPATH=src python benchmarks/bench_selection.py`.

Prints p50 and p99 of embedding, of clusters and blend, and of the whole selection with its explanation, for a 4 kB
prompt and the shapes that PERFORMANCE and selection §13 name. Prompts differ, so nothing is measured from a memo.
Collector and BLAS are set as in a router. Beside them stands a loop of nothing of 20 µs: what its p99 has over its p50
is the machine's part of every tail here.
Bars: ≤ 60 µs once embedded and ≤ 0.5 ms in all (K 40, 16 models); p99 ≤ 250 µs and ≤ 1 ms (K 64, 32 models).
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is loaded, as `turnout.choosing` does it

import numpy as np

from turnout.core.selection.arrays import frozen
from turnout.core.selection.blend import Blend
from turnout.core.selection.bundle import Axes, Bundle
from turnout.core.selection.controls import Overrides
from turnout.core.selection.eligibility import Eligible
from turnout.core.selection.embedder import HASHGRAM_DIM, Hashgram, length_feature, tail
from turnout.core.selection.knobs import Defaults, default_knobs
from turnout.core.selection.selection import select

_clock = time.thread_time_ns
PROMPTS = 4000
PROMPT_BYTES = 4096
_WARM_UP = 200


def main() -> None:
    """Run both shapes, with and without the linear head."""
    prompts = _prompts()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # of `turnout.app`
    print(f"{PROMPTS} prompts of {PROMPT_BYTES} bytes; CPU time of this thread in µs\n")
    _nothing()
    for clusters, models, head in ((40, 16, False), (40, 16, True), (64, 32, False), (64, 32, True)):
        _shape(prompts, clusters, models, head=head)


def _shape(prompts: list[str], clusters: int, models: int, *, head: bool) -> None:
    blend = Blend(_bundle(clusters, models, head=head))
    embedder = Hashgram()
    bundle = blend.bundle
    everyone = Eligible(bundle.models)
    spans: dict[str, list[int]] = {"embed": [], "clusters and blend": [], "selection once embedded": [], "all": []}
    for number, prompt in enumerate(prompts):
        overrides = Overrides(alpha=(number % 100) / 100, params=(("alpha", "turnout.alpha"),))
        started = _clock()
        vector = embedder.embed(tail(prompt, 1024))
        length = length_feature(len(prompt))
        embedded = _clock()
        select(blend, blend.weigh("", overrides), vector, length, everyone)
        ended = _clock()
        spans["embed"].append(embedded - started)
        spans["selection once embedded"].append(ended - embedded)
        spans["all"].append(ended - started)
        started = _clock()
        blend.score(blend.weigh("", overrides), blend.nearest(vector, length))
        spans["clusters and blend"].append(_clock() - started)
    print(f"K {clusters}, {models} models, {'with' if head else 'without'} linear head")
    for name, values in spans.items():
        _print(name, values)


def _nothing() -> None:
    """Measure a loop of about 20 µs that touches no memory."""
    size, spans = 400, []
    for _ in range(PROMPTS):
        started = _clock()
        for _ in range(size):
            pass
        spans.append(_clock() - started)
        size = max(1, round(size * 20_000 / max(1, spans[-1]))) if len(spans) < _WARM_UP // 2 else size
    _print("a loop of nothing", spans)


def _print(name: str, spans: list[int]) -> None:
    ordered = sorted(spans[_WARM_UP:])
    p50, p99 = ordered[len(ordered) // 2] / 1000, ordered[int(len(ordered) * 0.99)] / 1000
    print(f"  {name:<26} p50 {p50:7.1f}   p99 {p99:7.1f}")


def _prompts() -> list[str]:
    rng = random.Random(1)
    words = [
        "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randrange(2, 10))) for _ in range(20_000)
    ]
    made = []
    for _ in range(PROMPTS):
        text = " ".join(rng.choice(words) for _ in range(PROMPT_BYTES // 4))
        made.append(text[:PROMPT_BYTES])
    return made


def _bundle(clusters: int, models: int, *, head: bool) -> Bundle:
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(clusters, HASHGRAM_DIM))
    axes = Axes(*[frozen(rng.random(models) + 0.1) for _ in range(5)])
    return Bundle(
        version="bench",
        digest="",
        embedder_id=Hashgram.id,
        centroids=frozen(centroids / np.linalg.norm(centroids, axis=1, keepdims=True)),
        models=tuple(f"model-{number:02}" for number in range(models)),
        quality=frozen(rng.random((clusters, models))),
        axes=axes,
        defaults=Defaults(default_knobs(clusters)),
        head=frozen(rng.normal(size=(models, HASHGRAM_DIM + 1))) if head else None,
    )


if __name__ == "__main__":
    sys.exit(main())
