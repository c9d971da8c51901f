"""Sustained rows per second while the router serves: `python -m benchmarks.ledger_serving` (half a minute).

A request is two rows, a call and its attempt. The router of the other benchmarks, with its default ledger, is asked
at a fixed rate; twice a second its own figures say what waits in queue and spool. Needs the load tools (README.md).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.memory import load, prepare, require_all_served, serving

WARM_S, SECONDS = 3, 20
LOOK_S = 0.5
SETTLES_S = 60.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger_serving")
    parser.add_argument("--harness", type=Path, metavar="DIR", help="load tools (else $TURNOUT_BENCH, ../shared/bench)")
    parser.add_argument("--rows", type=int, default=5_000, metavar="N", help="rows per second")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="turnout-bench-", ignore_cleanup_errors=True) as temporary:
            _measure(Path(temporary), options)
    except harness.Unusable as reason:
        print(f"benchmarks: {reason}", file=sys.stderr)
        raise SystemExit(2) from None


def _measure(work: Path, options: argparse.Namespace) -> None:
    prepare(work, options.harness)
    with serving(work) as (_, listen, admin):
        arguments = f"-b {work}/bodies/small.jsonl -r {options.rows // 2} -c 64 -w {WARM_S} -d {SECONDS}"
        looks = []
        with subprocess.Popen(load(work, listen, arguments), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            while process.poll() is None:
                looks.append(_figures(admin))
                time.sleep(LOOK_S)
            answer = json.loads(process.stdout.read() or "{}")
        require_all_served(answer)
        _report(options.rows, answer, looks)
        started, last = time.monotonic(), looks[-1]
        while (last["queue_depth"] or last["spool_bytes"]) and time.monotonic() - started < SETTLES_S:
            time.sleep(0.05)
            last = _figures(admin)
        print(f"everything stored after {time.monotonic() - started:.2f} s: {last['rows_calls']} calls")
        print(f"decisions stored: {last['rows_decisions']}, dropped calls: {last['dropped_calls_queue_full']}")


def _report(rows: int, answer: dict[str, Any], looks: list[dict[str, Any]]) -> None:
    half = looks[len(looks) // 2 :]
    print(f"asked for {rows} rows/s; load: {json.dumps(answer)}")
    for name, unit in (("queue_depth", "calls"), ("spool_bytes", "bytes")):
        print(f"deepest {name}: {max(look[name] for look in looks)} {unit}, second half {max(h[name] for h in half)}")
    stored = (half[-1]["rows_calls"] - half[0]["rows_calls"]) + (half[-1]["rows_attempts"] - half[0]["rows_attempts"])
    print(f"rows stored per second, second half: {stored * 1000 / (half[-1]['now_ms'] - half[0]['now_ms']):.0f}")


def _figures(admin: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/x/ledger", timeout=10) as answered:
        found: dict[str, Any] = json.load(answered)
    return found


if __name__ == "__main__":
    main()
