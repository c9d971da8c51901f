"""The bars of issue 3 by replay: capacity on chat, agents, no reuse, poor knowledge, failing engines, and speed.

    python benchmarks/bench_replay.py TRACES chat agents azure knowledge faults speed [--quick]

TRACES is the folder of the three trace files. Each part prints its lines as they are known, as markdown; `agents:0.06`
is that part at one rate of new sessions.
"""

from __future__ import annotations

import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from turnout.sim.replay.capacity import search_capacity
from turnout.sim.replay.options import Fault, ReplayOptions
from turnout.sim.replay.record import Record
from turnout.sim.replay.summary import verdicts
from turnout.sim.replay.trace import Trace
from turnout.sim.replay.work import Bench, Done, Run, Source, cores, perform, perform_all
from turnout.sim.replay.world import World

CHAT_FILE = "mooncake_conversation_30min.jsonl.gz"
AGENTS_FILE = "claude_code_sessions_dev.jsonl.gz"
AZURE_FILE = "azure_2023_conv.csv.gz"
CHAT = ReplayOptions(profile="70b", cache_multiple=4.0)
AGENTS = ReplayOptions(profile="moe", endpoints=4)
AZURE = ReplayOptions(profile="70b")
RIVALS = [
    "llm_d_default",
    "sglang_cache_aware",
    "dynamo_cost",
    "aibrix_prefix",
    "least_predicted_ttft",
    "consistent_hash",
    "least_busy",
]
USUAL_RIVALS = ["llm_d_default", "sglang_cache_aware", "consistent_hash"]
"""Those that the bars at the agents' usual rates name, and the one that keeps sessions together best."""
_USUAL_RATE = 0.05
SLOW = tuple(Fault(kind="slow", engine=place, factor=2.0) for place in (2, 5))
SEEDS = [0, 1, 2]


class Lab:
    """Traces, read once, and the processes to use."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self._folder = folder
        self.seeds = SEEDS[:1] if quick else SEEDS
        self.jobs = cores()

    def source(self, name: str) -> Source:
        """Return one of the files."""
        return Source(files=(str(self._folder / name),))

    def runs(self, name: str, options: list[ReplayOptions], policies: list[str]) -> list[list[list[Done]]]:
        """Replay every option with every policy and seed; result[option][policy][seed]."""
        source = self.source(name)
        wanted = [
            Run(options=each, policy=policy, seed=seed)
            for each in options
            for policy in policies
            for seed in self.seeds
        ]
        done = iter(perform_all(source, source.load(), wanted, self.jobs, _quiet))
        return [[[next(done) for _ in self.seeds] for _ in policies] for _ in options]


def chat(lab: Lab) -> None:
    """Capacity at 95 %, hit rate and slowdown at 80 % of it."""
    source = lab.source(CHAT_FILE)
    policies = ["turnout", *RIVALS]
    with Bench(source, source.load(), lab.jobs) as bench:
        found = search_capacity(bench, CHAT, policies, lab.seeds, closed=False, width=0.01)
    best = found["turnout"]["capacity"]
    print("\n| chat, 8 x 70b, cache 4x | capacity at 95 % | turnout is |\n|---|---|---|")
    for policy in policies:
        capacity = found[policy]["capacity"]
        print(f"| {policy} | {capacity:.3f} | {best / capacity:.2f}x |")
    at = msgspec.structs.replace(CHAT, load=0.8 * best)
    figures = lab.runs(CHAT_FILE, [at], ["turnout"])[0][0]
    hits = sum(done.figures["hit_rate"] / done.figures["hit_rate_pooled_lru"] for done in figures) / len(figures)
    slow = sum(done.figures["slowdown"]["p99"] for done in figures) / len(figures)
    print(f"\nturnout at 80 % of its capacity: hit rate {hits:.3f} of pooled LRU, slowdown p99 {slow:.2f}", flush=True)
    print("\n| the cold gate on chat | in SLO with, without | hit rate with, without |\n|---|---|---|")
    for load in (1.0, 1.2):
        base = msgspec.structs.replace(CHAT, load=load)
        gated, open_ = lab.runs(CHAT_FILE, [base, msgspec.structs.replace(base, gate_regret=1.0)], ["turnout"])
        hit = [sum(done.figures["hit_rate"] for done in row[0]) / len(row[0]) for row in (gated, open_)]
        print(f"| {load}x | {_share(gated[0]):.4f}, {_share(open_[0]):.4f} | {hit[0]:.4f}, {hit[1]:.4f} |", flush=True)


def agents(lab: Lab, rates: tuple[float, ...] = (0.045, 0.05, 0.06, 0.07)) -> None:
    """Share in the objective, TTFT p95, hit rate and E2E per rate of new sessions."""
    print(
        "\n| sessions/s | policy | in SLO | TTFT p95, s | hit rate | E2E mean, s |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for rate in rates:
        options = msgspec.structs.replace(AGENTS, sessions_per_s=rate)
        # The cold gate is worth what its absence costs.
        ungated = msgspec.structs.replace(options, gate_regret=1.0)
        policies = ["turnout", *(RIVALS if rate > _USUAL_RATE else USUAL_RIVALS)]
        rows = dict(zip(policies, lab.runs(AGENTS_FILE, [options], policies)[0], strict=True))
        rows["turnout, gate open"] = lab.runs(AGENTS_FILE, [ungated], ["turnout"])[0][0]
        for title, seeds in rows.items():
            cells = []
            for path in (("slo_share",), ("ttft_s", "p95"), ("hit_rate",), ("e2e_s", "mean")):
                values = [_at(done.figures, path) for done in seeds]
                each = " / ".join(f"{value:.4g}" for value in values)
                cells.append(f"{sum(values) / len(values):.4g} ({each})")
            print(f"| {rate} | `{title}` | " + " | ".join(cells) + " |", flush=True)


def azure(lab: Lab) -> None:
    """No reuse: never worse than least_busy by more than half a point."""
    loads = [1.0, 1.25, 1.5, 1.75, 2.0]
    policies = ["turnout", "least_busy"]
    results = lab.runs(AZURE_FILE, [msgspec.structs.replace(AZURE, load=load) for load in loads], policies)
    print("\n| azure, 8 x 70b | turnout | least_busy | difference, points |\n|---|---|---|---|")
    for load, row in zip(loads, results, strict=True):
        mine, theirs = (_share(seeds) for seeds in row)
        print(f"| {load}x | {mine:.4f} | {theirs:.4f} | {100 * (mine - theirs):+.2f} |", flush=True)


def knowledge(lab: Lab) -> None:
    """Several routers, late or no KV events, wrong estimates."""
    changes: dict[str, dict[str, Any]] = {
        "as it should be": {},
        "4 routers, no bus, reports every 50 ms": {"routers": 4},
        "4 routers, no bus, waiting tokens only": {"routers": 4, "reports": "waiting"},
        "4 routers, no bus, vLLM's counts only": {"routers": 4, "reports": "counts"},
        "4 routers with a bus": {"routers": 4, "bus": True},
        "KV events 5 s late": {"event_delay_s": 5.0},
        "1 % of KV event batches lost": {"event_loss": 0.01},
        "no KV events": {"knowledge": "approximate"},
        "vLLM's counts only": {"reports": "counts"},
        "no load reports": {"reports": "none"},
        "estimates off by sigma 0.5": {"estimate_sigma": 0.5},
    }
    loads = [("chat 1.2x", CHAT_FILE, msgspec.structs.replace(CHAT, load=1.2)), ("agents 0.05/s", AGENTS_FILE, AGENTS)]
    for title, name, base in loads:
        options = [msgspec.structs.replace(base, **change) for change in changes.values()]
        results = lab.runs(name, options, ["turnout"])
        reference = _share(results[0][0])
        print(f"\n| {title} | in SLO | lost, points |\n|---|---|---|")
        for label, row in zip(changes, results, strict=True):
            print(f"| {label} | {_share(row[0]):.4f} | {100 * (reference - _share(row[0])):+.2f} |", flush=True)


def faults(lab: Lab) -> None:
    """One of eight killed and back after 300 s, two of eight at half speed."""
    dead = (Fault(kind="dead", engine=3, from_s=500.0, until_s=800.0),)
    changes: dict[str, dict[str, Any]] = {
        "all well": {},
        "one of 8 dead 500-800 s": {"faults": dead},
        "two of 8 at half speed": {"faults": SLOW},
        "seven engines, all well": {"endpoints": 7},
    }
    trace = lab.source(CHAT_FILE).load()
    for load in (0.8, 0.9, 1.0, 1.2):
        base = msgspec.structs.replace(CHAT, load=load)
        options = [msgspec.structs.replace(base, **change) for change in changes.values()]
        shares = [_share(row[0]) for row in lab.runs(CHAT_FILE, options, ["turnout"])]
        print(f"\n| chat {load}x | in SLO | lost, points |\n|---|---|---|")
        for label, share in zip(changes, shares, strict=True):
            print(f"| {label} | {share:.4f} | {100 * (shares[0] - share):+.2f} |", flush=True)
        told = sum(_told_speeds(trace, options[2], seed) for seed in lab.seeds) / len(lab.seeds)
        print(f"| two of 8 at half speed, told beforehand | {told:.4f} | {100 * (shares[0] - told):+.2f} |", flush=True)
    rivals = ["turnout", "least_busy", "llm_d_default", "least_predicted_ttft"]
    results = lab.runs(CHAT_FILE, [CHAT, msgspec.structs.replace(CHAT, faults=SLOW)], rivals)
    print("\n| chat 1.0x | " + " | ".join(rivals) + " |\n|---|" + "---|" * len(rivals))
    for label, row in zip(("all well", "two of 8 at half speed"), results, strict=True):
        print(f"| {label} | " + " | ".join(f"{_share(seeds):.4f}" for seeds in row) + " |", flush=True)
    for load in (1.0, 1.2):
        at = msgspec.structs.replace(CHAT, load=load, faults=dead)
        worst = max(_herd(World(trace, at, "turnout", seed).run(), at, 3, 800.0) for seed in lab.seeds)
        print(f"\nmost new requests of the returned engine in any 30 s at {load}x, over its fair share: {worst:.2f}")


def _told_speeds(trace: Trace, options: ReplayOptions, seed: int) -> float:
    """Share in the objective of a router that knows from the start which engines are slow."""
    world = World(trace, options, "turnout", seed)
    slow = {fault.engine: fault.factor for fault in options.faults}
    for place, endpoint in enumerate(world.routers[0].fleet.endpoints.values()):
        endpoint.prefill.samples = 32  # as many as a speed is averaged over
        endpoint.prefill.slowness = math.log(slow.get(place, 1.0))
    met = verdicts(world.run(), options, trace.block_tokens)
    return sum(met) / len(met)


def speed(lab: Lab) -> None:
    """CPU seconds of one replay on one core."""
    print("\n| one replay, one core | requests | engine steps | CPU s |\n|---|---|---|---|")
    agents_at = msgspec.structs.replace(AGENTS, sessions_per_s=0.1)
    everything = msgspec.structs.replace(agents_at, context_max=2**29)
    for title, name, options in (
        ("chat 1.0x", CHAT_FILE, CHAT),
        ("agents 0.1/s", AGENTS_FILE, agents_at),
        ("agents 0.1/s, no context limit", AGENTS_FILE, everything),
    ):
        trace = lab.source(name).load()
        for policy in ("turnout", "least_busy"):
            # A process of its own: nothing of one replay is in the caches of the next.
            with ProcessPoolExecutor(1) as executor:
                requests, steps, seconds = executor.submit(_timed, trace, options, policy).result()
            print(f"| {title}, {policy} | {requests} | {steps} | {seconds:.1f} |", flush=True)


def _timed(trace: Trace, options: ReplayOptions, policy: str) -> tuple[int, int, float]:
    began = time.process_time()
    done = perform(trace, Run(options=options, policy=policy, seed=0))
    return done.figures["requests"], done.figures["steps"], time.process_time() - began


def _herd(record: Record, options: ReplayOptions, engine: int, since: float) -> float:
    """Largest share of new requests that an engine got in any 30 s after an instant, over its fair share."""
    bound = [
        (at + held, place == engine)
        for at, held, place in zip(record.arrived_s, record.held_s, record.engine, strict=True)
        if at + held >= since
    ]
    bound.sort()
    worst = 0.0
    start = mine = 0
    for end, (at, is_mine) in enumerate(bound):
        mine += is_mine
        while bound[start][0] < at - 30.0:
            mine -= bound[start][1]
            start += 1
        if at >= since + 30.0:
            worst = max(worst, mine / (end - start + 1) * options.endpoints)
    return worst


def _at(figures: dict[str, Any], path: tuple[str, ...]) -> float:
    value: Any = figures
    for name in path:
        value = value[name]
    return float(value)


def _share(seeds: list[Done]) -> float:
    return float(sum(done.figures["slo_share"] for done in seeds) / len(seeds))


def _quiet(label: str, share: float) -> None:
    del label, share


PARTS = {"chat": chat, "agents": agents, "azure": azure, "knowledge": knowledge, "faults": faults, "speed": speed}


def main(arguments: list[str]) -> None:
    """Run the parts that are named."""
    quick = "--quick" in arguments
    folder, *parts = [each for each in arguments if each != "--quick"]
    lab = Lab(Path(folder), quick=quick)
    for part in parts:
        began = time.monotonic()
        name, _, rate = part.partition(":")
        if rate:
            agents(lab, (float(rate),))
        else:
            PARTS[name](lab)
        print(f"\n({part}: {time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
