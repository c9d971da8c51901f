"""What Turnout keeps in memory: `python -m benchmarks.memory` (about a minute).

Resident memory when idle, what each additional concurrent stream costs between 100 and 1,000 of them, and whether
memory stays flat over many requests. Uses the load tools of the harness, as `benchmarks.compare` does; see README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness, report
from benchmarks.compare import terminated

FEW, MANY = 100, 1000
# The first requests fill what is bounded (connections, recent decisions, the allocator's arenas) and count for nothing.
WARM_REQUESTS = 20_000
# Streams of 6 s, so that all are open at once: the harness' own, of 0.64 s, mostly end and begin at a thousand of them.
EVENTS, EVENT_GAP_MS = 120, 50
READY_S = 10.0
SETTLE_S = 2.0
SAMPLE_S = 0.1
IDLE_BAR_MB = 80
STREAM_BAR_KB = 60
# "Flat": a leak of one small object per request over 200,000 requests would be more than this.
FLAT_BAR_MB = 4


class Sample(NamedTuple):
    """Resident memory while so many streams were open at the engines."""

    rss_kb: int
    open_streams: int


def main() -> None:
    """Measure, print, and write the section Memory of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="Memory of Turnout under load.")
    parser.add_argument(
        "--harness", type=Path, metavar="DIR", help="load tools (else $TURNOUT_BENCH, else ../shared/bench)"
    )
    parser.add_argument("--requests", type=int, default=200_000, metavar="N", help="requests of the flatness test")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, metavar="FILE", help="results page; - prints only")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, terminated)
    try:
        with tempfile.TemporaryDirectory(prefix="turnout-bench-", ignore_cleanup_errors=True) as temporary:
            page = _measure(Path(temporary), options)
    except harness.Unusable as reason:
        print(f"benchmarks: {reason}", file=sys.stderr)
        raise SystemExit(2) from None
    print(page)
    if str(options.out) != "-":
        old = options.out.read_text(encoding="utf-8") if options.out.exists() else harness.TITLE
        options.out.write_text(report.with_section(old, "Memory", page), encoding="utf-8")
        print(f"written to {options.out}")


def at_concurrency(samples: Sequence[Sample], wanted: int) -> int:
    """Median memory, in kB, over the samples in which at least nine tenths of `wanted` streams were open."""
    seen = [sample.rss_kb for sample in samples if sample.open_streams >= 0.9 * wanted]
    if not seen:
        most = max((sample.open_streams for sample in samples), default=0)
        raise harness.Unusable(
            f"expected {wanted} concurrent streams, saw at most {most}: the load did not get through"
        )
    return int(statistics.median(seen))


def long_streams(bodies: str) -> str:
    """The harness' streaming bodies, asking the mock engine for longer streams (it reads `seed` as the gap in ms)."""
    asked = (json.loads(line) for line in bodies.splitlines())
    return "".join(json.dumps(body | {"max_tokens": EVENTS, "seed": EVENT_GAP_MS}) + "\n" for body in asked)


def judged(
    idle_kb: int, few_kb: int, many_kb: int, before_kb: int, after_kb: int, requests: int
) -> list[report.Judged]:
    """The lines of the table, from resident memory in kB."""
    per_stream = (many_kb - few_kb) / (MANY - FEW)
    grown = (after_kb - before_kb) / 1024
    lines = (
        ("RSS idle", idle_kb / 1024, " MB", IDLE_BAR_MB),
        (f"RSS at {MANY:,} streams", many_kb / 1024, " MB", 90),
        (f"per additional stream, {FEW:,} to {MANY:,}", per_stream, " kB", STREAM_BAR_KB),
        (f"growth over {requests:,} requests, from {before_kb / 1024:.1f} MB", grown, " MB", FLAT_BAR_MB),
    )
    return [
        report.Judged(name, report.DASH, f"{value:.1f}{unit}", f"≤ {bar}{unit}", report.DASH, _verdict(value, bar))
        for name, value, unit, bar in lines
    ]


def _verdict(value: float, bar: float) -> str:
    return "met" if value <= bar else "**not met**"


def _measure(work: Path, options: argparse.Namespace) -> str:
    prepare(work, options.harness)
    facts = harness.facts()
    with serving(work) as (router, listen, _):
        time.sleep(SETTLE_S)
        idle = _rss_kb(router.pid)
        few = at_concurrency(_streams(work, listen, router.pid, FEW), FEW)
        many = at_concurrency(_streams(work, listen, router.pid, MANY), MANY)
        _requests(work, listen, WARM_REQUESTS)
        before = _rss_kb(router.pid)
        _requests(work, listen, options.requests)
        after = _rss_kb(router.pid)
    table = report.bars_table(judged(idle, few, many, before, after, options.requests))
    return f"{report.facts_list(facts)}\n{table}"


def prepare(work: Path, given: Path | None) -> None:
    """Copy and build the load tools, `given` or found, and see that nobody listens where their engines will."""
    harness.prepare(harness.find(given, os.environ, harness.REPOSITORY), work)
    harness.require_free(range(harness.MOCK_PORT, harness.MOCK_PORT + harness.REPLICAS))


@contextmanager
def serving(work: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Run the mock engines on core 1 and Turnout on core 0; gives its process, its port and its admin port."""
    listen, admin = harness.free_ports(2)
    config = work / "bench.toml"
    config.write_text(harness.turnout_toml(listen, admin, work / "turnout.db"), encoding="utf-8")
    mock = ["taskset", "-c", "1", str(work / "mock"), str(harness.MOCK_PORT), str(harness.REPLICAS)]
    serve = ["taskset", "-c", "0", *harness.serve_command(config)]
    with _running(mock, work / "mock.log"), _running(serve, work / "turnout.log") as router:
        _wait_ready(listen, router, work / "turnout.log")
        yield router, listen, admin


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process while the block runs; it ends with it."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=harness.environment(), cwd=log.parent, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(port: int, router: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a router answers, or say what it said instead."""
    until = time.monotonic() + READY_S
    while time.monotonic() < until and router.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise harness.Unusable(f"turnout was not ready within {READY_S:g} s; its output:\n{said}")


def load(work: Path, port: int, arguments: str) -> list[str]:
    """The command that sends load, on the core of the engines."""
    return ["taskset", "-c", "1", str(work / "lg"), "-p", str(port), *arguments.split()]


def _streams(work: Path, port: int, pid: int, count: int) -> list[Sample]:
    bodies = work / "bodies" / "memory.jsonl"
    bodies.write_text(
        long_streams((work / "bodies" / "stream_10ms.jsonl").read_text(encoding="utf-8")), encoding="utf-8"
    )
    command = load(work, port, f"-b {bodies} -s -e {EVENTS} -c {count} -w 1 -d 3")
    samples = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.poll() is None:
            samples.append(Sample(_rss_kb(pid), _open_streams()))
            time.sleep(SAMPLE_S)
        require_all_served(json.loads(process.stdout.read() or "{}"))
    return samples


def _requests(work: Path, port: int, count: int) -> None:
    command = load(work, port, f"-b {work}/bodies/small.jsonl -c 32 -w 0 -d 600 -n {count}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    require_all_served(json.loads(done.stdout or "{}"))
    time.sleep(SETTLE_S)  # the ledger's writer ends its batches


def require_all_served(answer: dict[str, Any]) -> None:
    """Refuse figures of a run in which requests failed."""
    failed = sum(int(answer.get(kind, 0)) for kind in ("bad", "err", "short"))
    if failed or not answer.get("sent"):
        raise harness.Unusable(f"expected every request to be served, but {failed} of {answer.get('sent', 0)} failed")


def _rss_kb(pid: int) -> int:
    """Sum up the router and the process of its ledger as the harness does: pages that both have count once."""
    found = 0
    for process in (pid, *_children(pid)):
        with suppress(OSError):  # ended meanwhile
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
            found += int(re.findall(r"(?m)^Pss:\s+(\d+) kB", rollup)[0])
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for threads in Path(f"/proc/{pid}/task").glob("*/children"):  # whichever thread started one has it
        with suppress(OSError):
            found += map(int, threads.read_text(encoding="ascii").split())
    return found


def _open_streams() -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{harness.MOCK_PORT}/metrics", timeout=5) as answer:
        return sum(map(int, re.findall(r"(?m)^mock_inflight\{.*\} (-?\d+)$", answer.read().decode())))


if __name__ == "__main__":
    main()
