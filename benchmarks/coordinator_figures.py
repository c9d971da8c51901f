"""Figures and verdicts as the bars of the coordinator door print them."""

from __future__ import annotations

from pathlib import Path


def rss_bytes() -> int:
    """Resident memory of this process."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * 4096


def quantile(values: list[float], share: float) -> float:
    """Nearest-rank quantile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def judge(name: str, good: bool, figure: str) -> bool:  # noqa: FBT001 - the verdict is the argument
    """Print one line of the verdict."""
    print(f"{'ok  ' if good else 'MISS'} {name}: {figure}")
    return good


def show(name: str, values: list[float]) -> None:
    """Print one row of scheduling times."""
    row = [quantile(values, share) * 1e6 for share in (0.5, 0.95, 0.99)]
    print(f"{name:<10} {len(values):>8} {row[0]:>10.1f} {row[1]:>10.1f} {row[2]:>10.1f}")
