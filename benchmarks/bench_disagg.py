"""The replay bars of issue 5: capacity and ITL of pools with roles, against aggregated fleets and rivals' pair rules.

    python benchmarks/bench_disagg.py TRACES rivals static adaptive default_batch splits aggregated [--quick]

TRACES is the folder of the trace files. Each line is printed as it is known, as markdown. Every fleet has 8 engines of
the `70b` profile, cache 4 x, transfers at 50 GB/s; engines that decode batch 416 tokens under every rule.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from turnout.core.disagg_options import Disagg
from turnout.sim.replay.capacity import search_capacity
from turnout.sim.replay.options import ReplayOptions
from turnout.sim.replay.work import Bench, Run, Source, cores, perform

FILE = "mooncake_conversation_30min.jsonl.gz"
CHUNK_TOKENS = 416
BASE = ReplayOptions(profile="70b", cache_multiple=4.0, prefill_endpoints=4, decode_chunk_tokens=CHUNK_TOKENS)
SEEDS = [0, 1, 2]

# Names of rivals' rules: (prefill rule, decode rule). The first is what SGLang's and vLLM's routers recommend.
RIVALS = {
    "SGLang, vllm-router: cache_aware + power_of_two": ("sglang_cache_aware", "power_of_two"),
    "cache_aware + least busy": ("sglang_cache_aware", "least_busy"),
    "cache_aware twice (SGLang's default)": ("sglang_cache_aware", "sglang_cache_aware"),
    "cache_aware + round robin": ("sglang_cache_aware", "round_robin"),
    "round robin twice": ("round_robin", "round_robin"),
}
STATIC = {
    "least busy twice": ("least_busy", "least_busy"),
    "llm-d's scorers + least busy": ("llm_d_default", "least_busy"),
    "affinity_load + least busy": ("affinity_load", "least_busy"),
    "dynamo_cost twice": ("dynamo_cost", "dynamo_cost"),
    "turnout + memory_aware": ("turnout", "memory_aware"),
}


class Lab:
    """The trace, read once, and how much of it all is wanted."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self._source = Source(files=(str(folder / FILE),))
        self._trace = self._source.load()
        self._seeds = SEEDS[:1] if quick else SEEDS
        self._width = 0.08 if quick else 0.02
        print("| Rule | Prefill : decode | Capacity | met at | ITL p99 there | split |\n|---|---|---|---|---|---|")

    def line(self, title: str, options: ReplayOptions, policy: str) -> None:
        """Search one capacity, and look at the run at the highest load that met the objective."""
        with Bench(self._source, self._trace, cores()) as bench:
            found = search_capacity(bench, options, [policy], self._seeds, closed=False, width=self._width)[policy]
        at = msgspec.structs.replace(options, load=found["meets"])
        figures = perform(self._trace, Run(options=at, policy=policy, seed=0)).figures
        prefills = options.prefill_endpoints
        roles = f"{prefills} : {options.endpoints - prefills}" if prefills else f"{options.endpoints} x both"
        print(
            f"| {title} | {roles} | {found['capacity']:.3f} | {found['meets']:.3f} "
            f"| {figures['itl_s']['p99'] * 1000:.0f} ms | {_split(figures)} |",
            flush=True,
        )


def pairs(**disagg: Any) -> ReplayOptions:
    """Return the fleet with these pair rules."""
    return msgspec.structs.replace(BASE, disagg=Disagg(transfer_bytes_per_s=50e9, **disagg))


def rivals(lab: Lab) -> None:
    """Pair rules of other routers: always split."""
    for title, (prefill, decode) in RIVALS.items():
        lab.line(title, _from(0.25, pairs(decider="always", decode_policy=decode)), prefill)


def static(lab: Lab) -> None:
    """Pair rules out of the rules for one endpoint: always split."""
    for title, (prefill, decode) in STATIC.items():
        lab.line(title, _from(0.5, pairs(decider="always", decode_policy=decode)), prefill)
    lab.line("always split, both legs scored jointly", pairs(decider="always"), "turnout")
    lab.line("turnout, threshold 256 tokens", pairs(decider="threshold"), "turnout")


def adaptive(lab: Lab) -> None:
    """The default rule, with the batch of decode endpoints as deployed and as an aggregated fleet has it."""
    lab.line("adaptive", pairs(), "turnout")
    whole = msgspec.structs.replace(pairs(), decode_chunk_tokens=None)
    lab.line("adaptive, decode batches 2048", whole, "turnout")


def default_batch(lab: Lab) -> None:
    """What the router alone can do for ITL where decode endpoints batch 2048 tokens: send them less to prefill."""
    for title, disagg in (
        ("threshold 512 tokens", {"decider": "threshold", "min_uncached_tokens": 512}),
        ("threshold 2048 tokens", {"decider": "threshold", "min_uncached_tokens": 2048}),
        ("adaptive, interference 0.5", {"interference": 0.5}),
        ("adaptive, interference 2", {"interference": 2.0}),
    ):
        whole = msgspec.structs.replace(pairs(**disagg), decode_chunk_tokens=None)
        lab.line(f"{title}, decode batches 2048", whole, "turnout")


def splits(lab: Lab) -> None:
    """The default rule over other ratios."""
    for prefills in (3, 5, 6):
        lab.line("adaptive", msgspec.structs.replace(pairs(), prefill_endpoints=prefills), "turnout")


def aggregated(lab: Lab) -> None:
    """The same engines without roles."""
    whole = msgspec.structs.replace(BASE, prefill_endpoints=0, decode_chunk_tokens=None)
    lab.line("aggregated", whole, "turnout")
    small = msgspec.structs.replace(BASE, prefill_endpoints=0)
    lab.line(f"aggregated, all batch {CHUNK_TOKENS}", small, "turnout")


def _from(load: float, options: ReplayOptions) -> ReplayOptions:
    """Begin the search near its end: a fleet far beyond its capacity takes long to replay."""
    return msgspec.structs.replace(options, load=load)


def _split(figures: dict[str, Any]) -> str:
    count = figures.get("split")
    return "-" if count is None else f"{count / figures['requests']:.2f}"


PARTS = {
    "rivals": rivals,
    "static": static,
    "adaptive": adaptive,
    "default_batch": default_batch,
    "splits": splits,
    "aggregated": aggregated,
}


def main(arguments: list[str]) -> None:
    """Run the parts that are named."""
    folder, *parts = [each for each in arguments if each != "--quick"]
    lab = Lab(Path(folder), quick="--quick" in arguments)
    for part in parts:
        began = time.monotonic()
        PARTS[part](lab)
        print(f"\n({part}: {time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
