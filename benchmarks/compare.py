"""Turnout against the routers installed here: `python -m benchmarks.compare` (some minutes).

Drives the harness' run.py, which starts each target in turn on core 0 and loads it from core 1, round by round, and
writes medians and bars to RESULTS.md. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import harness, report

TESTS = "small,large,b2b,sse1000,sse2500,r1000"
QUICK_TESTS = "small,large,sse1000"
# Those that the bars speak of, and nginx for scale. Others of targets.json run when --only names them.
TARGETS = ("direct", "haproxy", "nginx", "sglang-rr", "sglang-ca", "vllm-router-rr", "litellm")


def main() -> None:
    """Measure, print, and write the results."""
    options = _options()
    signal.signal(signal.SIGTERM, terminated)
    try:
        with tempfile.TemporaryDirectory(prefix="turnout-bench-", ignore_cleanup_errors=True) as temporary:
            _compare(options, (options.work or Path(temporary)).resolve())
    except harness.Unusable as reason:
        print(f"benchmarks: {reason}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def terminated(*_: object) -> NoReturn:
    """Handle SIGTERM as Ctrl-C, so that what was started is ended."""
    raise KeyboardInterrupt


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="Turnout against other routers.")
    option = parser.add_argument
    option("--harness", type=Path, metavar="DIR", help="load tools (else $TURNOUT_BENCH, else ../shared/bench)")
    option("--work", type=Path, metavar="DIR", help="copy and build there, and keep it (else temporary)")
    option("--rounds", type=int, metavar="N", help="interleaved rounds (default 3, with --quick 1)")
    option("--tests", metavar="A,B", help=f"tests of run.py (default {TESTS}; with --quick {QUICK_TESTS})")
    option("--only", metavar="A,B", help="targets of targets.json; Turnout is 'mine' (default: those installed)")
    option("--quick", action="store_true", help="one round of few tests, printed; written only with --out")
    option("--rt", action="store_true", help="real-time priority, for latency tails on a shared machine")
    option("--out", type=Path, metavar="FILE", help="results page (default benchmarks/RESULTS.md)")
    option("--raw", type=Path, metavar="FILE", help="also keep the JSON lines there")
    options = parser.parse_args()
    options.rounds = options.rounds if options.rounds is not None else 1 if options.quick else 3
    options.tests = options.tests or (QUICK_TESTS if options.quick else TESTS)
    if options.rounds < 1:
        parser.error(f"--rounds: expected 1 or more, got {options.rounds}")
    if options.out is None and not options.quick:
        options.out = harness.RESULTS
    return options


def _compare(options: argparse.Namespace, work: Path) -> None:
    source = harness.find(options.harness, os.environ, harness.REPOSITORY)
    harness.prepare(source, work)
    peers = harness.peers_folder(source, work, os.environ)
    targets = json.loads((work / "targets.json").read_text(encoding="utf-8"))
    names, absent = choose(targets, peers, options.only)
    hint = harness.install_hint(absent, source, peers)
    if hint:
        print(f"not installed: {', '.join(absent)}. To get them: {hint}", flush=True)
    mocks = range(harness.MOCK_PORT, harness.MOCK_PORT + harness.REPLICAS)
    harness.require_free([*mocks, *(targets[name]["port"] for name in names if targets.get(name, {}).get("port"))])
    facts = harness.facts()  # before the load, so that the machine's own load is the one of others
    lines, ledger = _run(options, work, peers, names)
    if options.raw:
        options.raw.write_text("\n".join(lines) + "\n", encoding="utf-8")
    runs = report.Runs(report.rows_of(lines))
    facts |= {
        "peers": harness.versions(names, peers),
        "run": f"rounds {options.rounds}, tests {options.tests}{', real-time priority' * options.rt}",
        "not started": ", ".join(name for name in names if name not in runs.targets) or "none",
        "not installed": ", ".join(absent) or "none",
        "ledger": ledger_fact(ledger, runs.failed(report.MINE)[1]),
    }
    page = _page(runs, facts, _scheduling())
    print(f"\n{page}")
    if options.out:
        old = options.out.read_text(encoding="utf-8") if options.out.exists() else harness.TITLE
        options.out.write_text(report.with_section(old, "Comparison", page), encoding="utf-8")
        print(f"written to {options.out}")
    if not runs.rows(report.MINE):
        print(f"benchmarks: Turnout was not measured; its output:\n{_log(work)}", file=sys.stderr)
        raise SystemExit(1)


def choose(targets: Mapping[str, Mapping[str, Any]], peers: Path, only: str | None) -> tuple[list[str], list[str]]:
    """Targets to run, in the order of targets.json with Turnout last, and those wanted but not installed."""
    wanted = only.split(",") if only else [*TARGETS, report.MINE]
    unknown = [name for name in wanted if name not in targets and name != report.MINE]
    if unknown and only:
        known = ", ".join([*targets, report.MINE])
        raise harness.Unusable(f"--only: expected names of {known}, got {', '.join(unknown)}")
    here, absent = harness.split_peers({name: targets[name] for name in targets if name in wanted}, peers)
    return here + [report.MINE] * (report.MINE in wanted), absent


def _run(options: argparse.Namespace, work: Path, peers: Path, names: Sequence[str]) -> tuple[list[str], Path]:
    """Run the harness; its JSON lines, and the ledger that Turnout wrote."""
    listen, admin = harness.free_ports(2)
    place = Path(tempfile.mkdtemp(prefix="turnout-", dir=work))
    config, ledger, out = place / "bench.toml", place / "turnout.db", place / "out.jsonl"
    config.write_text(harness.turnout_toml(listen, admin, ledger), encoding="utf-8")
    (place / "mine.json").write_text(json.dumps(harness.mine(config, listen)), encoding="utf-8")
    out.touch()
    command = [sys.executable, str(work / "run.py"), str(work / "targets.json"), str(place / "mine.json")]
    command += ["--only", ",".join(names), "--rounds", str(options.rounds), "--tests", options.tests, "--out", str(out)]
    command += ["--rt"] if options.rt else []
    environ = harness.environment() | {"PEERS": str(peers)}
    process = subprocess.Popen(command, cwd=work, env=environ, start_new_session=True)
    try:
        status = process.wait()
    except BaseException:
        # It ends its proxies on SIGTERM; killed, it would leave one of them and the mock engines behind.
        process.terminate()
        process.wait()
        raise
    if status:
        print(f"benchmarks: run.py ended with {status}; what it measured until then follows", file=sys.stderr)
    return out.read_text(encoding="utf-8").splitlines(), ledger


def _scheduling() -> str:
    command = ["taskset", "-c", "0", sys.executable, str(harness.REPOSITORY / "benchmarks" / "bench_schedule.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=harness.environment())
    if done.returncode:
        print(f"benchmarks: bench_schedule.py failed:\n{done.stderr}", file=sys.stderr)
    return done.stdout


def ledger_fact(ledger: Path, sent: int) -> str:
    """How much of what was sent the ledger holds: a router that drops its facts is measured with the ledger off."""
    if not ledger.exists():
        return "none was written"
    connection = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        (calls,) = connection.execute("SELECT count(*) FROM calls").fetchone()
    except sqlite3.Error as error:
        return f"cannot be read: {error}"
    finally:
        connection.close()
    waiting = sum(file.stat().st_size for file in ledger.parent.glob(f"{ledger.name}*spool*") if file.is_file())
    return f"{calls:,} calls stored of {sent:,} sent by the load generator, {waiting / 1e6:.1f} MB still in the spool"


def _page(runs: report.Runs, facts: Mapping[str, str], scheduling: str) -> str:
    judged = [*(report.judge(runs, bar) for bar in report.BARS), *report.scheduling_bars(scheduling)]
    return (
        f"{report.facts_list(facts)}\n"
        "Medians over rounds; the proxy on core 0, engines and load on core 1.\n\n"
        f"{report.medians_table(runs)}\n"
        "Ratios of medians within this run, in brackets the lowest and highest round.\n\n"
        f"{report.bars_table(judged)}"
    )


def _log(work: Path) -> str:
    path = work / "logs" / "mine.log"
    return path.read_text(encoding="utf-8", errors="replace")[-2000:] if path.exists() else "(no log)"


if __name__ == "__main__":
    main()
