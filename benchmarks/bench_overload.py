"""Three times more work than there are places: `PYTHONPATH=src:. python benchmarks/bench_overload.py` (about a minute).

Goodput is tokens of complete answers per second. Bars (resilience P7): at 3 × capacity at least 90 % of that at
capacity, waits within `admission.queue_wait_s`, refusals within 50 ms and with Retry-After, no tenant below its share.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

from benchmarks.fleet_rig import Rig, Seen, ask, percentile, rig

ENGINES, SLOTS, TOKENS = 4, 8, 40
PHASE_S = 15.0
QUEUE_WAIT_S = 5.0
TENANTS = ["a", "b", "c"]
ENDPOINT = '[[endpoint]]\nname = "e{0}"\nurl = "{{}}"\nmodels = ["sim"]\nmax_in_flight = {1}\n'
SETTINGS = f"[admission]\nqueue_wait_s = {QUEUE_WAIT_S}\n" + "".join(
    ENDPOINT.format(number, SLOTS) for number in range(1, ENGINES + 1)
)
GOODPUT_BAR, REFUSAL_BAR_S, SHARE_BAR = 0.90, 0.05, 0.95


async def at_capacity(bench: Rig) -> float:
    """As many clients as places, each asking again at once: the most that the engines do."""
    ends = time.perf_counter() + PHASE_S
    seen: list[Seen] = []

    async def client(number: int) -> None:
        turn = 0
        while time.perf_counter() < ends:
            turn += 1
            tenant = TENANTS[number % len(TENANTS)]
            seen.append(await ask(bench.port, bench.keys[tenant], f"{number} {turn}", TOKENS))

    await asyncio.gather(*[client(number) for number in range(ENGINES * SLOTS)])
    return _goodput(seen, ends - PHASE_S, ends)


async def overloaded(bench: Rig, per_s: float) -> tuple[float, dict[str, list[Seen]]]:
    """Arrivals that do not care whether anybody keeps up."""
    rng = random.Random(0)
    began = time.perf_counter()
    ends = began + PHASE_S
    seen: dict[str, list[Seen]] = {tenant: [] for tenant in TENANTS}
    tasks: list[asyncio.Task[None]] = []

    async def one(tenant: str, number: int) -> None:
        seen[tenant].append(await ask(bench.port, bench.keys[tenant], f"over {number}", TOKENS))

    due = began
    number = 0
    while (now := time.perf_counter()) < ends:
        while due <= now:
            number += 1
            tasks.append(asyncio.create_task(one(TENANTS[number % len(TENANTS)], number)))
            due += rng.expovariate(per_s)
        await asyncio.sleep(max(0.0, min(due, ends) - time.perf_counter()))
    await asyncio.gather(*tasks)
    # The first seconds fill the queue; what counts is the state that lasts.
    return _goodput([one for each in seen.values() for one in each], began + QUEUE_WAIT_S / 2, ends), seen


def _goodput(seen: list[Seen], begin: float, end: float) -> float:
    return sum(one.tokens for one in seen if one.done and begin <= one.ended_s < end) / (end - begin)


def main() -> None:
    """Measure and print one line per bar; exit 1 when one is missed."""
    with rig(ENGINES, TENANTS, ["--max-num-seqs", str(SLOTS), "--speed", "1"], SETTINGS) as bench:
        most = asyncio.run(at_capacity(bench))
        per_s = most / TOKENS
        got, seen = asyncio.run(overloaded(bench, 3 * per_s))
    everyone = [one for each in seen.values() for one in each]
    refused = [one for one in everyone if one.status in (429, 503)]
    at_once = [one for one in refused if one.ended_s - one.started_s < QUEUE_WAIT_S / 2]
    waited = [one.first_s - one.started_s for one in everyone if one.first_s is not None]
    done = Counter({tenant: sum(one.done for one in each) for tenant, each in seen.items()})
    fair = sum(done.values()) / len(TENANTS)
    refusal_s = percentile([one.ended_s - one.started_s for one in at_once], 0.99)
    worst = min(done.values()) / fair if fair else 0.0
    named = sum(one.retry_after.isdigit() for one in refused)
    rows = [
        ("goodput at 3 times the capacity", got / most, ">=", GOODPUT_BAR, f"{got:.0f} of {most:.0f} tokens/s"),
        ("longest wait for a first token, s", max(waited), "<=", QUEUE_WAIT_S + 1.0, f"{len(waited)} answers"),
        ("refusal p99, s", refusal_s, "<=", REFUSAL_BAR_S, f"{len(at_once)} refused on arrival"),
        ("refusals with Retry-After", named / max(1, len(refused)), ">=", 1.0, f"{len(refused)} in all"),
        ("least served tenant / fair share", worst, ">=", SHARE_BAR, dict(done)),
        ("other endings", sum(one.status not in (200, 429, 503) for one in everyone), "<=", 0, ""),
    ]
    missed = 0
    for name, value, sense, bar, told in rows:
        good = value >= bar if sense == ">=" else value <= bar
        missed += not good
        print(f"{'ok  ' if good else 'MISS'} {name:<36} {value:8.3f} {sense} {bar:<6} {told}")
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
