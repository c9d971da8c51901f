"""From the harness' JSON lines to markdown: medians, ratios within one run, and the bars of PERFORMANCE.md.

Pure: text in, text out. A figure that was not measured says so; a figure of Turnout with failed requests is not valid.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Row = dict[str, Any]

DASH = "\N{EN DASH}"  # between the ends of a range, and where a table has nothing to say
TIMES = "\N{MULTIPLICATION SIGN}"

MINE = "mine"
DIRECT = "direct"
SGLANG = ("sglang-ca", "sglang-rr")


class Bar(NamedTuple):
    """One line of "What Turnout must reach". With peers it is a ratio to the best of them, else an absolute figure."""

    figure: str
    test: str
    key: str
    better: Literal["higher", "lower"]
    bar: float
    moonshot: float
    peers: tuple[str, ...] = ()
    unit: str = ""
    scale: float = 1.0
    added: bool = False  # what the proxy adds: the figure minus the same figure straight to the engine


BARS = (
    Bar("small requests/s", "small", "rps", "higher", 2.5, 4.5, ("sglang-ca",)),
    Bar("small requests/s", "small", "rps", "higher", 1.5, 3, ("vllm-router-rr",)),
    Bar("small requests/s", "small", "rps", "higher", 0.3, 0.55, ("haproxy",)),
    Bar("32 KB requests/s", "large", "rps", "higher", 1.8, 3, ("sglang-ca",)),
    Bar("events/s at 2,500 streams", "sse2500", "events_s", "higher", 2.0, 2.8, SGLANG),
    Bar("CPU per event at 1,000 streams", "sse1000", "cpu_us_event", "lower", 0.75, 0.6, SGLANG),
    Bar("event lag p99 at 1,000 streams", "sse1000", "lag_p99_us", "lower", 10, 3, unit=" ms", scale=1e-3),
    Bar("added latency at 1,000 req/s, p50", "r1000", "p50_us", "lower", 0.8, 0.55, SGLANG, added=True),
    Bar("added latency at 1,000 req/s, p99", "r1000", "p99_us", "lower", 0.7, 0.45, SGLANG, added=True),
    Bar("small requests/s", "small", "rps", "higher", 300, 700, ("litellm",)),
    Bar("events/s, 32 streams back to back", "b2b", "events_s", "higher", 80, 140, ("litellm",)),
    Bar("RSS after 1,000 streams", "sse1000", "rss_mb", "lower", 90, 50, unit=" MB"),
    Bar("start to first served request", "", "start_s", "lower", 0.6, 0.2, unit=" s"),
)


class Judged(NamedTuple):
    """One line of the table of bars, as text."""

    figure: str
    against: str
    measured: str
    bar: str
    moonshot: str
    verdict: str


def rows_of(lines: Iterable[str]) -> list[Row]:
    """Rows of the harness, without tests in which nothing was sent. Raises ValueError on a line that is no object."""
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: expected a JSON object of the harness, got {line[:60]!r}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: expected a JSON object of the harness, got {line[:60]!r}")  # noqa: TRY004
        if row.get("sent"):
            rows.append(row)
    return rows


class Runs:
    """The rows of one interleaved run, asked for by target, test and figure."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.targets = list(dict.fromkeys(str(row["target"]) for row in rows))
        self.rounds = sorted({int(row["round"]) for row in rows})
        self._rows = rows

    def rows(self, target: str, test: str = "", only_round: int | None = None) -> list[Row]:
        """Rows of a target; an empty test means all of them."""
        return [
            row
            for row in self._rows
            if row["target"] == target
            and (not test or row["test"] == test)
            and (only_round is None or row["round"] == only_round)
        ]

    def median(self, target: str, test: str, key: str, only_round: int | None = None) -> float | None:
        """Median over rounds; None when not measured. The load generator writes -1 for a percentile of no samples."""
        values = [
            row[key] for row in self.rows(target, test, only_round) if row.get(key) is not None and row[key] != -1
        ]
        return statistics.median(values) if values else None

    def failed(self, target: str, test: str = "") -> tuple[int, int]:
        """Requests that failed (no 200, a broken connection, a stream cut short) and requests sent."""
        rows = self.rows(target, test)
        failed = sum(int(row.get(kind, 0)) for row in rows for kind in ("bad", "err", "short"))
        return failed, sum(int(row["sent"]) for row in rows)

    def figure(self, target: str, bar: Bar, only_round: int | None = None) -> float | None:
        """The figure a bar speaks of, in its unit."""
        value = self.median(target, bar.test, bar.key, only_round)
        if value is None or not bar.added:
            return None if value is None else value * bar.scale
        base = self.median(DIRECT, bar.test, bar.key, only_round)
        return None if base is None else (value - base) * bar.scale


def judge(runs: Runs, bar: Bar) -> Judged:
    """One bar against what was measured."""
    sign = "≥" if bar.better == "higher" else "≤"
    unit = TIMES if bar.peers else bar.unit
    peer = _strongest(runs, bar)
    against = peer or " or ".join(bar.peers) or DASH
    fixed = (f"{sign} {bar.bar:g}{unit}", f"{sign} {bar.moonshot:g}{unit}")
    mine = runs.figure(MINE, bar)
    missing = _missing(runs, bar, mine, peer)
    if missing or mine is None:
        return Judged(bar.figure, against, DASH, *fixed, f"not measured: {missing}")
    value = _ratio(runs, bar, peer)
    if value is None:
        return Judged(bar.figure, against, DASH, *fixed, f"not measured: {peer} adds nothing that could be divided by")
    spread = [v for v in (_ratio(runs, bar, peer, r) for r in runs.rounds) if v is not None]
    measured = f"{_number(value)}{unit}"
    if len(spread) > 1:
        measured += f" ({_number(min(spread))}{DASH}{_number(max(spread))})"
    return Judged(bar.figure, against, measured, *fixed, _verdict(runs, bar, value, peer))


def _strongest(runs: Runs, bar: Bar) -> str:
    """Of several versions of one peer, the one that is hardest to beat."""
    measured = {peer: value for peer in bar.peers if (value := runs.figure(peer, bar)) is not None}
    if not measured:
        return ""
    return (max if bar.better == "higher" else min)(measured, key=lambda peer: measured[peer])


def _missing(runs: Runs, bar: Bar, mine: float | None, peer: str) -> str:
    if mine is None:
        straight = bar.added and runs.figure(DIRECT, bar) is None and runs.rows(MINE, bar.test)
        return f"no rows of {DIRECT}" if straight else f"no rows of {MINE}" + (f" in {bar.test}" if bar.test else "")
    return f"no rows of {' or '.join(bar.peers)} in {bar.test}" if bar.peers and not peer else ""


def _ratio(runs: Runs, bar: Bar, peer: str, only_round: int | None = None) -> float | None:
    mine = runs.figure(MINE, bar, only_round)
    if mine is None or not bar.peers:
        return mine
    other = runs.figure(peer, bar, only_round)
    return mine / other if other is not None and other > 0 else None


def _verdict(runs: Runs, bar: Bar, value: float, peer: str) -> str:
    failed, sent = runs.failed(MINE, bar.test)
    if failed:
        return f"not valid: {failed:,} of {sent:,} requests failed"
    return reached(value, bar.bar, bar.moonshot, bar.better) + _peer_failures(runs, bar, peer)


def reached(value: float, bar: float, moonshot: float, better: Literal["higher", "lower"]) -> str:
    """Whether a figure meets its bar, and the moonshot behind it."""

    def meets(limit: float) -> bool:
        return value >= limit if better == "higher" else value <= limit

    return "moonshot" if meets(moonshot) else "met" if meets(bar) else "**not met**"


def _peer_failures(runs: Runs, bar: Bar, peer: str) -> str:
    failed, sent = runs.failed(peer, bar.test) if peer else (0, 0)
    return f" ({peer} failed {failed:,} of {sent:,})" if failed else ""


def scheduling_bars(output: str) -> list[Judged]:
    """The two bars that bench_schedule.py measures, read from what it prints."""
    line = re.compile(r"^[a-z_]+, (?:64 endpoints|all report), .*p99 +([0-9.]+) µs", re.MULTILINE)  # every policy
    times = [float(p99) for p99 in line.findall(output)]
    size = re.search(r"^index: [0-9,]+ entries, ([0-9.]+) B", output, re.MULTILINE)
    wanted: list[tuple[str, str, float | None, float, float]] = [
        ("scheduling one request, 64 endpoints, 128 blocks, p99", " µs", max(times, default=None), 250, 100),
        ("prefix index memory per block", " B", float(size[1]) if size else None, 160, 100),
    ]
    return [
        Judged(
            figure,
            DASH,
            DASH if value is None else f"{_number(value)}{unit}",
            f"≤ {bar:g}{unit}",
            f"≤ {moonshot:g}{unit}",
            "not measured: bench_schedule.py" if value is None else reached(value, bar, moonshot, "lower"),
        )
        for figure, unit, value, bar, moonshot in wanted
    ]


def bars_table(judged: Iterable[Judged]) -> str:
    """Markdown of the bars."""
    return _table(("figure", "against", "measured", "bar", "moonshot", "verdict"), judged)


def medians_table(runs: Runs) -> str:
    """Markdown of the medians over rounds, one line per target, in the columns of PERFORMANCE.md."""
    head = (
        "target",
        "small req/s (CPU µs)",
        "32 KB req/s (CPU µs)",
        "events/s back to back",
        "CPU µs per event, 1,000 streams",
        "events/s, 2,500 streams",
        "event lag p99 ms, 1,000 / 2,500 streams",
        "added µs at 1,000 req/s, p50 / p99",
        "RSS MB at first answer / after 1,000 streams",
        "start s",
        "failed",
    )
    return _table(head, [_medians(runs, target) for target in runs.targets])


def _medians(runs: Runs, target: str) -> list[str]:
    def cell(test: str, key: str, places: int = 0, scale: float = 1.0) -> str:
        value = runs.median(target, test, key)
        # Straight to the engine there is no proxy whose CPU, memory or start could be measured.
        proxy = key.startswith(("cpu", "rss", "start"))
        return DASH if value is None or (target == DIRECT and proxy) else f"{value * scale:,.{places}f}"

    def added(key: str) -> str:
        value, base = runs.median(target, "r1000", key), runs.median(DIRECT, "r1000", key)
        return DASH if value is None or base is None or target == DIRECT else f"{value - base:,.0f}"

    failed, sent = runs.failed(target)
    return [
        f"**{target}**" if target == MINE else target,
        f"{cell('small', 'rps')} ({cell('small', 'cpu_us_req', 1)})",
        f"{cell('large', 'rps')} ({cell('large', 'cpu_us_req', 1)})",
        cell("b2b", "events_s"),
        cell("sse1000", "cpu_us_event", 2),
        cell("sse2500", "events_s"),
        f"{cell('sse1000', 'lag_p99_us', 1, 1e-3)} / {cell('sse2500', 'lag_p99_us', 1, 1e-3)}",
        f"{added('p50_us')} / {added('p99_us')}",
        f"{cell('', 'rss_idle_mb')} / {cell('sse1000', 'rss_mb')}",
        cell("", "start_s", 2),
        f"{failed:,} of {sent:,}",
    ]


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits are as many as noise leaves


def facts_list(facts: Mapping[str, str]) -> str:
    """Markdown list of what was measured where."""
    return "".join(f"- {name}: {value}\n" for name, value in facts.items())


def with_section(document: str, heading: str, body: str) -> str:
    """The document with the section `## heading` replaced, or appended when it has none; other sections stay."""
    section = f"## {heading}\n\n{body.strip()}\n"
    parts = re.split(r"(?m)^(?=## )", document)
    for i, part in enumerate(parts):
        if part.startswith(f"## {heading}\n"):
            parts[i] = section + ("\n" if i + 1 < len(parts) else "")
            return "".join(parts)
    return f"{document.rstrip()}\n\n{section}"
