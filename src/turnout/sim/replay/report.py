"""The document of a replay: figures per policy and seed, means over seeds, paired differences to the first policy.

Plain JSON values in a fixed order, so that equal files, options and seeds give equal bytes. The table shows the means.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from rich.table import Table

from turnout.sim.replay.options import ReplayOptions
from turnout.sim.replay.paired import paired_difference
from turnout.sim.replay.trace import Trace
from turnout.sim.replay.work import Done

_VERSION = 1

_COLUMNS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("in SLO", ("slo_share",), "share"),
    ("TTFT mean", ("ttft_s", "mean"), "s"),
    ("p50", ("ttft_s", "p50"), "s"),
    ("p95", ("ttft_s", "p95"), "s"),
    ("p99", ("ttft_s", "p99"), "s"),
    ("slowdown p99", ("slowdown", "p99"), "x"),
    ("ITL p99", ("itl_s", "p99"), "ms"),
    ("E2E mean", ("e2e_s", "mean"), "s"),
    ("goodput/s", ("goodput_per_s",), "x"),
    ("hit rate", ("hit_rate",), "share"),
    ("of pooled LRU", ("hit_rate_pooled_lru",), "share"),
    ("load CoV", ("load_cov",), "x"),
    ("held", ("held_s", "mean"), "s"),
)


def document(
    trace: Trace,
    options: ReplayOptions,
    results: list[Done],
    capacity: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return everything that a replay found."""
    policies = list(dict.fromkeys(done.run.policy for done in results))
    seeds = list(dict.fromkeys(done.run.seed for done in results))
    by = {(done.run.policy, done.run.seed): done for done in results}
    out: dict[str, Any] = {
        "v": _VERSION,
        "trace": {
            "name": trace.name,
            "format": trace.format,
            "requests": trace.size,
            "sessions": len(trace.sessions),
            "block_tokens": trace.block_tokens,
            "notes": trace.notes,
        },
        "options": msgspec.to_builtins(options),
        "seeds": seeds,
        "policies": {},
        "differences": {},
    }
    for policy in policies:
        mine = [by[policy, seed] for seed in seeds]
        out["policies"][policy] = {
            "mean": _mean([done.figures for done in mine]),
            "seeds": {str(done.run.seed): done.figures for done in mine},
        }
        if capacity is not None:
            out["policies"][policy]["capacity"] = capacity.get(policy)
    first = policies[0] if policies else ""
    for policy in policies[1:]:
        out["differences"][f"{policy} - {first}"] = _differences(
            [by[policy, seed] for seed in seeds], [by[first, seed] for seed in seeds]
        )
    return out


def as_json(report: dict[str, Any]) -> str:
    """Return the document as text."""
    return json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def as_table(report: dict[str, Any]) -> Table:
    """Return the means over seeds as a table."""
    trace = report["trace"]
    table = Table(title=f"{trace['name']}: {trace['requests']} requests, seeds {report['seeds']}")
    table.add_column("policy")
    with_capacity = any("capacity" in entry for entry in report["policies"].values())
    if with_capacity:
        table.add_column("capacity", justify="right")
    for name, _, _ in _COLUMNS:
        table.add_column(name, justify="right")
    for policy, entry in report["policies"].items():
        cells = [policy]
        if with_capacity:
            found = entry.get("capacity")
            cells.append("-" if found is None else f"{found['capacity']:.3f}")
        cells += [_cell(entry["mean"], path, unit) for _, path, unit in _COLUMNS]
        table.add_row(*cells)
    return table


def differences_table(report: dict[str, Any]) -> Table | None:
    """Return the paired differences as a table; None when there is nothing to compare."""
    if not report["differences"]:
        return None
    table = Table(title="paired differences, with 95 % bootstrap intervals")
    for name in ("policies", "in SLO, points", "TTFT, s"):
        table.add_column(name, justify="left" if name == "policies" else "right")
    for pair, gaps in report["differences"].items():
        table.add_row(pair, _interval(gaps["slo_share"], 100.0), _interval(gaps["ttft_s"], 1.0))
    return table


def _differences(mine: list[Done], theirs: list[Done]) -> dict[str, Any]:
    shares: tuple[list[float], list[float]] = ([], [])
    firsts: tuple[list[float], list[float]] = ([], [])
    for one, other in zip(mine, theirs, strict=True):
        for (verdicts, ttfts), done in zip(zip(shares, firsts, strict=True), (one, other), strict=True):
            order = sorted(range(len(done.names)), key=done.names.__getitem__)
            verdicts += [float(done.met[place]) for place in order]
            ttfts += [done.ttft_s[place] for place in order]
    seed = mine[0].run.seed
    pairs = [place for place in range(len(firsts[0])) if firsts[0][place] >= 0 and firsts[1][place] >= 0]
    return {
        "slo_share": paired_difference(shares[0], shares[1], seed),
        "ttft_s": paired_difference([firsts[0][p] for p in pairs], [firsts[1][p] for p in pairs], seed),
    }


def _mean(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean of every number over the seeds, part by part; what is missing in one is missing in the mean."""
    out: dict[str, Any] = {}
    for name, value in figures[0].items():
        values = [each.get(name) for each in figures]
        if isinstance(value, dict):
            names = sorted({key for each in values if each for key in each}) if name in _OPEN else list(value)
            out[name] = _mean([{key: (each or {}).get(key, 0 if name in _OPEN else None) for key in names}
                               for each in values]) if names else {}  # fmt: skip
        elif any(each is None for each in values):
            out[name] = None
        else:
            out[name] = round(sum(values) / len(values), 6)  # type: ignore[arg-type]
    return out


_OPEN = frozenset(("held", "fallbacks", "drops"))  # counts by name: a name that does not occur is 0


def _cell(figures: dict[str, Any], path: tuple[str, ...], unit: str) -> str:
    value: Any = figures
    for name in path:
        value = value[name]
    if value is None:
        return "-"
    match unit:
        case "share":
            return f"{100 * value:.2f} %"
        case "ms":
            return f"{1000 * value:.0f} ms"
        case "s":
            return f"{value:.3f} s" if value < 10 else f"{value:.1f} s"  # noqa: PLR2004 - three digits are enough
        case _:
            return f"{value:.3f}"


def _interval(gap: dict[str, Any], scale: float) -> str:
    if gap["mean"] is None:
        return "-"
    return f"{scale * gap['mean']:+.3f} [{scale * gap['low']:+.3f}, {scale * gap['high']:+.3f}]"
