"""How long one decision takes, and what the prefix index weighs: `PYTHONPATH=src python benchmarks/bench_schedule.py`.

Prints p50 and p99 of `schedule()` with its whole decision, at 4 endpoints with 2 blocks and at 64 endpoints with 128
blocks against an index of a million entries, for the default policy and for the plain `affinity_load`; then what a
seat costs over its life, and the memory per entry of both indexes. Times are CPU times of this thread, so that a busy
machine does not count. Bars: PERFORMANCE.md (p99 ≤ 250 µs, ≤ 160 B per block, ≤ 250 B per pair of the exact index).
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from pathlib import Path

from turnout.core import options
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.precision import Mode
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.fleet.report import Report
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision
from turnout.core.scheduling.explain import explain
from turnout.core.scheduling.pipeline import schedule
from turnout.core.scheduling.seats import take_seat

_clock = time.thread_time
ENTRIES = 1_000_000
SYSTEM_BLOCKS = 8
CACHE_BLOCKS = 6400


def main() -> None:
    """Run all figures once."""
    small("affinity_load")
    small("turnout")
    large()
    exact()


def small(policy: str) -> None:
    """The shape of the small-request benchmark: 4 lightly used endpoints, 0 to 2 blocks."""
    _settle()
    rng = random.Random(1)
    fleet, pool = _fleet(4, policy)
    for member in pool.members:
        member.in_flight = rng.randrange(8)
    held = [rng.getrandbits(64) for _ in range(2)]
    fleet.index.record(held, pool.members[2].bit, 0.0)
    for name, keys in (("no keys", []), ("match", held), ("miss", [1, 2])):
        ask = Ask("m", keys, 150, 120)
        _print(f"{policy}, 4 endpoints, {name}", _time([ask] * 20_000, fleet, pool, rng, batch=100))
    spans = []
    ask = Ask("m", held, 150, 120)
    for _ in range(200):
        decisions = [schedule(ask, pool, fleet, 1.0, rng) for _ in range(50)]
        started = _clock()
        for decision in decisions:
            seat = take_seat(decision, ask, pool, fleet, 1.0)
            seat.first_byte(1.1)
            seat.ended(1.2, failed=False, tokens_out=48)
        spans.append((_clock() - started) / len(decisions))
    _print(f"{policy}, 4 endpoints, seat taken to ended", spans)


def large() -> None:
    """64 endpoints, chats of 128 blocks that share a system prompt, a full index."""
    rng = random.Random(2)
    before = _rss()
    fleet, pool = _fleet(64, "turnout")
    for member in pool.members:
        member.in_flight = rng.randrange(32)
    system = [rng.getrandbits(64) for _ in range(SYSTEM_BLOCKS)]
    chats: list[list[int]] = []
    now = 0.0
    while fleet.index.entries < ENTRIES - 3 * 200:
        now += 0.02
        chat = system + [rng.getrandbits(64) for _ in range(120)]
        # One placement in four is repeated elsewhere, half as deep, so that depths differ.
        fleet.index.record(chat, rng.choice(pool.members).bit, now)
        if rng.random() < 0.25:  # noqa: PLR2004 - one in four
            fleet.index.record(chat[:64], rng.choice(pool.members).bit, now)
        chats.append(chat)
        if fleet.index.evicted["cap"]:
            break
    entries = fleet.index.entries
    recent = chats[-4000:]
    chats.clear()
    _settle()
    print(f"index: {entries:,} entries, {(_rss() - before) / entries:.0f} B of process memory each")
    asks = [Ask("m", rng.choice(recent), 8192, 6000) for _ in range(4000)]
    misses = [Ask("m", [rng.getrandbits(64) for _ in range(128)], 8192, 6000) for _ in range(4000)]
    for policy in ("affinity_load", "turnout"):
        pool.policy = policy
        _print(f"{policy}, 64 endpoints, 128 blocks, match", _time(asks, fleet, pool, rng, batch=1))
        _print(f"{policy}, 64 endpoints, 128 blocks, miss", _time(misses, fleet, pool, rng, batch=1))
    _report(fleet, pool, recent, rng)
    _settle()
    _print("turnout, all report, caches full, match", _time(asks, fleet, pool, rng, batch=1))
    _print("turnout, all report, caches full, miss", _time(misses, fleet, pool, rng, batch=1))
    decision = schedule(asks[0], pool, fleet, now, rng)
    started = _clock()
    for _ in range(100):
        explain(decision, "r")
    print(f"explain of 64 candidates: {(_clock() - started) * 1e4:.0f} µs")
    spans = []
    for ask in misses:
        started = _clock()
        fleet.index.record(ask.keys, pool.members[0].bit, now)
        spans.append(_clock() - started)
    _print("record of 128 new blocks", spans)


def _report(fleet: Fleet, pool: Pool, chats: list[list[int]], rng: random.Random) -> None:
    """Have every engine report its load, with a cache that is full: each candidate has every term of the cost."""
    for member in pool.members:
        member.cache_tokens = CACHE_BLOCKS * 64
        for chat in rng.sample(chats, CACHE_BLOCKS // len(chats[0]) + 2):
            seat = take_seat(_placed(member, chat, fleet, pool, rng), Ask("m", chat, 8192, 6000), pool, fleet, 1.0)
            seat.first_byte(1.2)
            seat.ended(1.4, failed=False, tokens_out=48)
        report = Report(
            running=rng.randrange(32),
            waiting=rng.randrange(4),
            waiting_uncached_tokens=rng.randrange(4) * 4096,
            kv_usage_ratio=0.95,
            kv_capacity_tokens=CACHE_BLOCKS * 64,
        )
        fleet.observed(member, member.sent(1.0), report)


def _placed(member: EndpointState, chat: list[int], fleet: Fleet, pool: Pool, rng: random.Random) -> Decision:
    """Return a decision for this endpoint."""
    ask = Ask("m", chat, 8192, 6000, tried=tuple(each.name for each in pool.members if each is not member))
    return schedule(ask, pool, fleet, 1.0, rng)


def exact() -> None:
    """64 endpoints whose engines publish: a million pairs, hashes as vLLM has them (64 bits of their own)."""
    rng = random.Random(3)
    gc.collect()
    before = _rss()
    fleet, pool = _fleet(64, "turnout")
    chats: list[list[int]] = []
    system = [rng.getrandbits(64) for _ in range(SYSTEM_BLOCKS)]
    for member in pool.members:
        member.in_flight = rng.randrange(32)
        fleet.open_stream(member, 64)
        member.mode = Mode.EXACT
    while fleet.exact.pairs < ENTRIES:
        member = rng.choice(pool.members)
        chat = system + [rng.getrandbits(64) for _ in range(120)]
        fleet.blocks_stored(member, member.streams[0], [(rng.getrandbits(64), key) for key in chat], 0.0)
        chats.append(chat)
    recent = chats[-4000:]
    chats.clear()
    _settle()
    pairs = fleet.exact.pairs
    print(f"exact index: {pairs:,} pairs, {(_rss() - before) / pairs:.0f} B of process memory each")
    asks = [Ask("m", chat, 8192, 6000, chains={64: chat}) for chat in recent]
    _print("turnout, 64 endpoints, exact, match", _time(asks, fleet, pool, rng, batch=1))


def _fleet(size: int, policy: options.PolicyName) -> tuple[Fleet, Pool]:
    prefix = options.Prefix(max_blocks=3 * ENTRIES // 2, ttl_s=86_400.0)
    fleet = Fleet(options.Scheduling(policy=policy), prefix, options.Breaker())
    for number in range(size):
        fleet.add(options.Endpoint(name=f"e{number:02}", url="http://127.0.0.1:1", models=["m"]), 0.0)
    pool = fleet.pool("m")
    if pool is None:
        raise AssertionError("the model has no pool")
    return fleet, pool


def _settle() -> None:
    """Treat the collector as the router does after its start."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _time(asks: list[Ask], fleet: Fleet, pool: Pool, rng: random.Random, batch: int) -> list[float]:
    clock = _clock
    spans = []
    for start in range(0, len(asks), batch):
        chunk = asks[start : start + batch]
        started = clock()
        for ask in chunk:
            schedule(ask, pool, fleet, 1.0, rng)
        spans.append((clock() - started) / batch)
    return spans


def _print(name: str, spans: list[float]) -> None:
    spans.sort()
    p50, p99 = (spans[int(len(spans) * share)] * 1e6 for share in (0.5, 0.99))
    print(f"{name:46} p50 {p50:7.2f} µs   p99 {p99:7.2f} µs")


def _rss() -> int:
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
