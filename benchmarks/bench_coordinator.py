"""The bars of the coordinator door (issue 6), each as one command that prints its figures and fails when one is missed.

python -m benchmarks.bench_coordinator fuzz --messages 1000000
python -m benchmarks.bench_coordinator churn --seconds 60
python -m benchmarks.bench_coordinator storm --seconds 60
python -m benchmarks.bench_coordinator cardinality --prompts 5000000
python -m benchmarks.bench_coordinator ttl
python -m benchmarks.bench_coordinator deaf --rounds 10
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable

import uvloop
from benchmarks.coordinator_deaf import Beside
from benchmarks.coordinator_figures import judge, quantile, rss_bytes, show
from benchmarks.coordinator_fuzz import Fuzz

from turnout.coordinator.affinity import Chooser
from turnout.coordinator.client import CoordinatorClient, RequestFailed
from turnout.coordinator.control import State
from turnout.coordinator.engine import Echo, EnginePeer
from turnout.coordinator.listener import CoordinatorListener
from turnout.coordinator.peers import Engine
from turnout.coordinator.rehearsal import Rehearsal
from turnout.coordinator.tally import Histogram
from turnout.core.coordinator_options import Affinity, Coordinator
from turnout.core.prefix.keys import meg_hashes, meg_keys
from turnout.engines import megatron as wire

BYTES_PER_ENTRY = 160
MIB = 1_048_576
DRIFT_MAX = 1.10
TTL_COST_MAX = 1.05
FLAT_MIB = 24
STORM_P99_S = 0.001
DEAF_COST_MAX = 1.10


class Samples(Histogram):
    """A histogram that keeps every value of the phase under way."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def observe(self, seconds: float) -> None:
        """Keep one duration."""
        self.values.append(seconds)


# -- fuzz -------------------------------------------------------------------------------------------------------------


def fuzz(arguments: argparse.Namespace) -> bool:
    """Hostile messages in ten parts, so that memory can be compared between them."""
    run = Fuzz(arguments.seed)
    sizes = []
    started = time.perf_counter()
    for _ in range(10):
        run.run(arguments.messages // 10)
        gc.collect()
        sizes.append(rss_bytes())
    passed = time.perf_counter() - started
    print(f"{run.sent} hostile messages, seed {arguments.seed}, {run.sent / passed:,.0f}/s; honest {run.honest_sent}")
    for reason, count in run.invalid.most_common():
        print(f"  {reason:<40} {count}")
    faults = run.faults()
    good = judge("counters, honest requests and maps", not faults, "; ".join(faults) or "all as the oracle says")
    growth = (sizes[-1] - sizes[4]) / MIB
    return judge("memory flat over the second half", growth <= FLAT_MIB, f"{growth:+.1f} MiB") and good


# -- churn ------------------------------------------------------------------------------------------------------------


class Churn:
    """Real sockets on one loop: engines that come and go, clients that ask at a steady rate."""

    def __init__(self, rate: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.rate = rate
        self.endings: Counter[str] = Counter()
        self.joins = 0
        self.is_churning = False
        self.waiting: set[asyncio.Task[None]] = set()
        options = Coordinator(bind="tcp://127.0.0.1:*", block_tokens=16, empty_wait_s=10.0)
        self.listener = CoordinatorListener(options, Affinity())
        self.samples = self.listener.door.tally.schedule_s = Samples()

    async def engine(self, number: int, until: Callable[[], bool]) -> None:
        """One identity; while the pool churns it lives for a few hundred milliseconds at a time."""
        while not until():
            peer = EnginePeer(self.listener.address, b"mp-coord-%d" % number, Echo(0.002))
            peer.start()
            self.joins += 1
            await asyncio.sleep(self.rng.uniform(0.2, 0.5))
            while not self.is_churning and not until():  # noqa: ASYNC110 - a phase, not an event
                await asyncio.sleep(0.02)
            # Half say goodbye, half are killed.
            peer.close(goodbye=self.rng.random() < 0.5)  # noqa: PLR2004
            await asyncio.sleep(self.rng.uniform(0.05, 0.3))

    async def ask(self, client: CoordinatorClient) -> None:
        """One request to its end."""
        family = self.rng.randrange(64)
        prompt = [family] * 64 + [self.rng.randrange(1000) for _ in range(8)]
        try:
            answer = await client.submit(prompt, {"num_tokens_to_generate": 4})
        except RequestFailed as failure:
            self.endings[failure.reason] += 1
        else:
            self.endings["completed" if answer["generated_tokens"] == prompt[:4] else "wrong"] += 1

    async def load(self, clients: list[CoordinatorClient], seconds: float) -> None:
        """Ask at the rate, whatever comes back."""
        loop = asyncio.get_running_loop()
        start, sent = loop.time(), 0
        while (passed := loop.time() - start) < seconds:
            while sent < passed * self.rate:
                task = loop.create_task(self.ask(clients[sent % len(clients)]))
                self.waiting.add(task)
                task.add_done_callback(self.waiting.discard)
                sent += 1
            await asyncio.sleep(0.002)

    async def run(self, seconds: float, engines: int) -> tuple[list[tuple[str, list[float]]], list[int]]:
        """Before, during and after; returns the scheduling times of each and the memory over the middle."""
        await self.listener.start()
        finished = asyncio.Event()
        peers = [asyncio.create_task(self.engine(number, finished.is_set)) for number in range(engines)]
        clients = [CoordinatorClient(self.listener.address) for _ in range(4)]
        for client in clients:
            await client.connect()
        while len(self.listener.door.roster) < engines:  # noqa: ASYNC110 - another peer's doing
            await asyncio.sleep(0.01)
        phases, memory = [], []
        for name, length in (("before", 10.0), ("during", seconds), ("after", 10.0)):
            self.is_churning = name == "during"
            self.samples.values = []
            for _ in range(5):
                await self.load(clients, length / 5)
                if self.is_churning:
                    memory.append(rss_bytes())
            phases.append((name, self.samples.values))
        if self.waiting:
            await asyncio.wait(self.waiting, timeout=15)
        finished.set()
        await asyncio.gather(*peers)
        for client in clients:
            client.close()
        await asyncio.sleep(1.0)
        return phases, memory


def churn(arguments: argparse.Namespace) -> bool:
    """Engines join and leave every few hundred milliseconds under load."""
    world = Churn(arguments.rate, arguments.seed)

    async def play() -> tuple[list[tuple[str, list[float]]], list[int], int]:
        phases, memory = await world.run(arguments.seconds, arguments.engines)
        hung = len(world.waiting)
        await world.listener.stop()
        return phases, memory, hung

    phases, memory, hung = uvloop.run(play())
    door = world.listener.door
    print(
        f"{arguments.engines} engines, {world.joins} joins, {arguments.rate} requests/s, endings {dict(world.endings)}"
    )
    tally = door.tally
    print(f"resent {tally.resent}, dropped replies {dict(tally.dropped)}, unreachable {dict(tally.unreachable)}")
    print(f"{'schedule':<10} {'count':>8} {'p50 us':>10} {'p95 us':>10} {'p99 us':>10}")
    for name, values in phases:
        show(name, values)
    growth = (memory[-1] - memory[1]) / MIB
    left = len(door.requests.open) + len(door.requests.pending)
    return all(
        [
            judge("no hung future", not hung, str(hung)),
            judge("no wrong answer", not world.endings["wrong"], str(world.endings["wrong"])),
            judge("maps empty", not left, str(left)),
            judge("memory flat", growth <= FLAT_MIB, f"{growth:+.1f} MiB over the churn"),
        ]
    )


# -- storm ------------------------------------------------------------------------------------------------------------


def storm(arguments: argparse.Namespace) -> bool:
    """Acceptance 8: 64 engines, one joins or leaves every 5 ms, 500 requests/s; in memory, on virtual time."""
    rng = random.Random(arguments.seed)
    there = Rehearsal(Coordinator(block_tokens=16, empty_wait_s=5.0), Affinity(), timer=time.thread_time)
    samples = there.door.tally.schedule_s = Samples()
    names = [b"mp-coord-%d" % number for number in range(64)]
    there.clients(b"client")
    there.engines(*names)
    answered, sizes, number = 0, [], 0
    for step in range(int(arguments.seconds * 200)):
        there.now += 0.005
        name = rng.choice(names)
        if name not in there.door.roster.live:
            there.gone.discard(name)
            there.engines(name)
        elif rng.random() < 0.5:  # noqa: PLR2004 - half say goodbye
            there.say(name, wire.DISCONNECT)
        else:
            there.gone.add(name)
        for _ in range(2 + step % 2):
            there.say(b"client", wire.submit(number, [number % 64] * 64 + [number], {}))
            number += 1
        there.carry(there.door.tick(there.now))
        for engine in list(there.door.roster.live.values()):
            there.inbox.pop(engine.identity, None)
            if engine.open and engine.identity not in there.gone and rng.random() < 0.5:  # noqa: PLR2004
                there.finish(engine.identity, *list(engine.open))
        answered += len(there.inbox.pop(b"client", []))
        if step % 1000 == 0:
            sizes.append(rss_bytes())
    there.gone.clear()
    there.engines(*names)
    there.wait(12.0)
    for engine in list(there.door.roster.live.values()):
        there.finish(engine.identity, *list(engine.open))
    there.wait(12.0)
    answered += len(there.inbox.pop(b"client", []))
    tally = there.door.tally
    print(f"{dict(tally.registrations)}, {number} requests, {answered} answers, failed {dict(tally.failed)}")
    print(f"{'schedule':<10} {'count':>8} {'p50 us':>10} {'p95 us':>10} {'p99 us':>10}")
    show("all", samples.values)
    p99 = quantile(samples.values, 0.99)
    growth = (sizes[-1] - sizes[len(sizes) // 2]) / MIB
    return all(
        [
            judge("one answer each", answered == number, f"{answered} of {number}"),
            judge("maps empty", not there.leftovers(), str(there.leftovers())),
            judge("p99 of scheduling", p99 < STORM_P99_S, f"{p99 * 1e6:.0f} us"),
            judge("memory at a plateau", growth <= FLAT_MIB, f"{growth:+.1f} MiB over the second half"),
        ]
    )


# -- deaf -------------------------------------------------------------------------------------------------------------


def deaf(arguments: argparse.Namespace) -> bool:
    """What a client that does not read costs the others."""
    world = Beside(arguments.seed)
    found = uvloop.run(world.run(arguments.rounds))
    print(f"{'stranger':<10} {'count':>8} {'p50 us':>10} {'p95 us':>10} {'p99 us':>10}")
    for reads, waits in found.items():
        show("reads" if reads else "deaf", [value for part in waits for value in part])
    reading, not_reading = (statistics.median(quantile(part, 0.99) for part in found[reads]) for reads in (True, False))
    door = world.listener.door
    left, gone = len(door.requests.open), door.tally.unreachable["client"]
    return all(
        [
            judge("each deaf one was forgotten", gone == arguments.rounds, f"{gone} of {arguments.rounds}"),
            judge("the deaf one had a backlog", world.backlog > 0, f"{world.backlog} messages at most"),
            judge("maps empty", not left, str(left)),
            judge(
                "p99 of others, median of rounds",
                not_reading / reading <= DEAF_COST_MAX,
                f"{not_reading * 1e3:.2f} ms deaf, {reading * 1e3:.2f} ms reading, ratio {not_reading / reading:.3f}",
            ),
        ]
    )


# -- index ------------------------------------------------------------------------------------------------------------


def pool(chooser: Chooser, count: int) -> list[Engine]:
    """Engines at the door of a chooser."""
    return [Engine(b"mp-coord-%02d" % n, 1, chooser.index.assign(0.0), State.RUNNING, 0.0) for n in range(count)]


def cardinality(arguments: argparse.Namespace) -> bool:
    """Distinct prompts of two blocks, 5,000 a virtual second, so that cap and TTL both work.

    The index is filled to its cap first: a table that still grows is faster, and says nothing about drift.
    """
    chooser = Chooser(Affinity(max_blocks=1_000_000, ttl_s=300.0), 256)
    engines = pool(chooser, 8)
    gc.collect()
    base = rss_bytes()
    tenth = arguments.prompts // 10
    warm = 500_000
    for number in range(-warm, 0):
        keys = meg_keys(meg_hashes((number, *range(31)), 16), 1)
        chooser.record(keys, chooser.choose(keys, engines, 0.0).engine, 0.0)
    times: list[list[float]] = []
    peak = 0
    clock = time.thread_time  # the machine may be shared: preemption is not our drift
    for part in range(10):
        values = []
        for number in range(part * tenth, (part + 1) * tenth):
            now = number * 0.0002
            keys = meg_keys(meg_hashes((number, *range(31)), 16), 1)
            started = clock()
            engine = chooser.choose(keys, engines, now).engine
            chooser.record(keys, engine, now)
            values.append(clock() - started)
        times.append([quantile(values, 0.5), quantile(values, 0.95), quantile(values, 0.99)])
        del values
        gc.collect()
        peak = max(peak, rss_bytes() - base)
        row = times[-1]
        print(
            f"tenth {part}: p50 {row[0] * 1e6:6.2f} p95 {row[1] * 1e6:6.2f} p99 {row[2] * 1e6:6.2f} us, "
            f"{chooser.index.entries} entries, {(rss_bytes() - base) / MIB:.0f} MiB"
        )
    index = chooser.index
    evicted = sum(index.evicted.values())
    # A line through all ten: single tenths differ by more than any drift on a machine that others use.
    slope, start = statistics.linear_regression(range(10), [row[2] for row in times])
    drift = (start + 9 * slope) / start
    print(f"p99 of the last tenth against the first, as they are: {times[-1][2] / times[0][2]:.3f}")
    budget = BYTES_PER_ENTRY * 1_000_000 / MIB
    return all(
        [
            judge("memory budget", peak / MIB <= budget, f"{peak / MIB:.0f} of {budget:.0f} MiB"),
            judge(
                "eviction counters",
                index.created == index.entries + evicted == 2 * (10 * tenth + warm),
                f"created {index.created} = present {index.entries} + {dict(index.evicted)}",
            ),
            judge("p99 drift over the ten, fitted", drift <= DRIFT_MAX, f"{drift:.3f}"),
        ]
    )


def ttl(arguments: argparse.Namespace) -> bool:
    """Steady state with the TTL on and off, in alternating rounds so that noise hits both alike."""
    choosers = {limit: Chooser(Affinity(max_blocks=1_000_000, ttl_s=limit), 256) for limit in (300.0, 0.0)}
    pools = {limit: pool(chooser, 8) for limit, chooser in choosers.items()}
    rng = random.Random(arguments.seed)
    families = [[rng.getrandbits(63) for _ in range(16)] for _ in range(2000)]
    rounds: dict[float, list[float]] = {limit: [] for limit in choosers}
    for turn in range(arguments.rounds):
        for limit in list(choosers) if turn % 2 else list(choosers)[::-1]:
            chooser, engines = choosers[limit], pools[limit]
            started = time.perf_counter()
            for number in range(20_000):
                now = turn * 10.0 + number * 0.0005
                keys = [*families[number % 2000], number + turn * 20_000]
                chooser.record(keys, chooser.choose(keys, engines, now).engine, now)
            rounds[limit].append(time.perf_counter() - started)
    on, off = (statistics.median(rounds[limit]) / 20_000 * 1e6 for limit in (300.0, 0.0))
    return judge(
        "TTL on against off", on / off <= TTL_COST_MAX, f"{on:.2f} us against {off:.2f} us, ratio {on / off:.3f}"
    )


def main() -> int:
    """Run one bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bars = {"fuzz": fuzz, "churn": churn, "storm": storm, "cardinality": cardinality, "ttl": ttl, "deaf": deaf}
    parser.add_argument("bar", choices=bars)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--prompts", type=int, default=5_000_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    return 0 if bars[arguments.bar](arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
