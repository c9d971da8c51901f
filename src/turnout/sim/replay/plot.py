"""Pictures of a replay as SVG, written by hand: share in the objective over load, or TTFT percentiles per policy.

No plotting library: one picture is two axes and some lines, and equal figures must give equal bytes.
"""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 860, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 220, 50, 60
# Colours that remain apart for colour-blind readers (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_TICKS = 5


def as_svg(report: dict[str, Any]) -> str:
    """Draw the searches if there are any, else the distribution of TTFT."""
    policies = report["policies"]
    if any(entry.get("capacity") for entry in policies.values()):
        lines = {
            policy: [(float(load), share) for load, share in entry["capacity"]["tried"].items()]
            for policy, entry in policies.items()
            if entry.get("capacity")
        }
        closed = bool(report["trace"]["sessions"])
        return _chart(
            f"{report['trace']['name']}: requests in the objective",
            "new sessions per second" if closed else "load, as a multiple of the trace's rate",
            "share in SLO",
            lines,
            floor=0.5,
            ceiling=1.0,
        )
    shares = (("p50", 50.0), ("p90", 90.0), ("p95", 95.0), ("p99", 99.0))
    lines = {
        policy: [(at, entry["mean"]["ttft_s"][name] or 0.0) for name, at in shares]
        for policy, entry in policies.items()
    }
    return _chart(f"{report['trace']['name']}: time to first token", "percentile", "seconds", lines)


def _chart(
    title: str,
    across: str,
    up: str,
    lines: dict[str, list[tuple[float, float]]],
    floor: float | None = None,
    ceiling: float | None = None,
) -> str:
    points = [point for line in lines.values() for point in line]
    left, right = _reach([x for x, _ in points])
    low, high = _reach([y for _, y in points])
    low = low if floor is None else min(floor, low)
    high = high if ceiling is None else ceiling
    if floor is None:
        low = 0.0

    def x_of(value: float) -> float:
        return _LEFT + (value - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def y_of(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    middle_x, middle_y = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    font = 'font-family="sans-serif" font-size="13"'
    turned = f"translate(18 {middle_y:.1f}) rotate(-90)"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {font} role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="28" font-size="16">{escape(title)}</text>',
        f'<text x="{middle_x:.1f}" y="{_HEIGHT - 16}" text-anchor="middle">{escape(across)}</text>',
        f'<text transform="{turned}" text-anchor="middle">{escape(up)}</text>',
    ]
    for step in range(_TICKS + 1):
        x, y = left + (right - left) * step / _TICKS, low + (high - low) * step / _TICKS
        out.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 8}" y="{y_of(y) + 4:.1f}" text-anchor="end">{_label(y)}</text>'
            f'<text x="{x_of(x):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{_label(x)}</text>'
        )
    for number, (name, line) in enumerate(lines.items()):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)]
        path = " ".join(f"{x_of(x):.1f},{min(max(y_of(y), _TOP), _HEIGHT - _BOTTOM):.1f}" for x, y in sorted(line))
        at = _TOP + 10 + 20 * number
        style = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" fill="none"'
        out.append(
            f'<polyline points="{path}" {style}/>'
            f'<line x1="{_WIDTH - _RIGHT + 16}" x2="{_WIDTH - _RIGHT + 44}" y1="{at}" y2="{at}" {style}/>'
            f'<text x="{_WIDTH - _RIGHT + 50}" y="{at + 4}">{escape(name)}</text>'
        )
    out.append("</svg>")
    return "\n".join(out) + "\n"


def _reach(values: list[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _label(value: float) -> str:
    return f"{value:.3g}"
