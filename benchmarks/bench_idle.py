"""What idle and slow clients cost the others: `PYTHONPATH=src:. python benchmarks/bench_idle.py [COUNT]` (a minute).

Opens COUNT idle connections (10,000), and one client that asks for a long stream and does not read it. Bar: the p99 of
the first token of everybody else moves by at most 20 %. Rounds with and without alternate, so that both see the same
machine; the medians of their p99 are compared.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import statistics
import sys
import time
from pathlib import Path

from benchmarks.fleet_rig import Rig, ask, percentile, rig

COUNT = 10_000
ROUNDS, CLIENTS, ASKS = 5, 8, 25
BAR = 1.20
SETTLE_S = 3.0
SETTINGS = "".join(f'[[endpoint]]\nname = "e{number}"\nurl = "{{}}"\nmodels = ["sim"]\n' for number in (1, 2))


async def round_of(bench: Rig, name: str) -> float:
    """The p99 of the first token over some hundred requests, in ms."""
    ttfts: list[float] = []

    async def client(number: int) -> None:
        for turn in range(ASKS):
            seen = await ask(bench.port, bench.keys["a"], f"{name} {number} {turn}", 4)
            if seen.first_s is not None:
                ttfts.append((seen.first_s - seen.started_s) * 1000)

    await asyncio.gather(*[client(number) for number in range(CLIENTS)])
    return percentile(ttfts, 0.99)


def idle(bench: Rig, count: int) -> list[socket.socket]:
    """Open connections that say nothing, from several addresses: one address has ports for 28,000 only."""
    found = []
    for number in range(count):
        client = socket.socket()
        client.bind((f"127.0.0.{2 + number % 8}", 0))
        client.connect(("127.0.0.1", bench.port))
        found.append(client)
    return found


def slow_reader(bench: Rig) -> socket.socket:
    """Ask for much and read nothing of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", bench.port))
    fields = {"model": "sim", "messages": [{"role": "user", "content": "long"}], "max_tokens": 100_000, "stream": True}
    body = json.dumps({**fields, "ignore_eos": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {bench.keys['a']}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    client.sendall(head.encode() + body)
    return client


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    """Measure and print; exit 1 when the bar is missed."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    alone: list[float] = []
    crowded: list[float] = []
    with rig(2, ["a"], ["--speed", "4"], SETTINGS) as bench:
        asyncio.run(round_of(bench, "warm"))
        before = rss_mib(bench.router.pid)
        held_mib = 0.0
        for number in range(ROUNDS):
            alone.append(asyncio.run(round_of(bench, f"alone {number}")))
            clients = idle(bench, count)
            slow = slow_reader(bench)
            time.sleep(SETTLE_S)  # ten thousand accepts are work, too: the last of them wait in the backlog
            crowded.append(asyncio.run(round_of(bench, f"crowded {number}")))
            held_mib = max(held_mib, rss_mib(bench.router.pid) - before)
            for client in (*clients, slow):
                client.close()
            time.sleep(SETTLE_S)  # so are ten thousand closes, and neither is what is measured
    ratio = statistics.median(crowded) / statistics.median(alone)
    print(f"TTFT p99 alone   {', '.join(f'{value:.2f}' for value in alone)} ms")
    print(f"TTFT p99 crowded {', '.join(f'{value:.2f}' for value in crowded)} ms")
    verdict = "ok  " if ratio <= BAR else "MISS"
    print(f"{verdict} ratio of medians {ratio:.3f} <= {BAR}; {count} idle connections take {held_mib:.1f} MiB")
    raise SystemExit(ratio > BAR)


if __name__ == "__main__":
    main()
