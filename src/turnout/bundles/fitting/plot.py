"""The cost–quality plot as SVG text: one line per order of prompts, the corners labelled, no library and no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

from turnout.core.selection.arrays import Floats

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 720, 460, 64, 40, 176, 56
_COLOURS = ("#1f6feb", "#8c959f", "#bf8700", "#1a7f37", "#cf222e", "#8250df")
_TICKS = 5
_POINTS_MAX = 400


class Line(msgspec.Struct, frozen=True):
    """One line: x in [0, 1], y in the data's own unit."""

    name: str
    x: Floats
    y: Floats


def svg(title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> str:
    """Return the whole picture."""
    low = min(float(line.y.min()) for line in lines)
    high = max(float(line.y.max()) for line in lines)
    pad = (high - low) * 0.05 or 0.05
    low, high = low - pad, high + pad
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x * width, _TOP + (high - y) / (high - low) * height

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for step in range(_TICKS + 1):
        part = step / _TICKS
        x, _ = place(part, low)
        _, y = place(0, low + part * (high - low))
        parts.append(
            f'<path d="M{x:.1f} {_TOP}V{_TOP + height}M{_LEFT} {y:.1f}H{_LEFT + width}" stroke="#eaeef2" fill="none"/>'
        )
        parts.append(f'<text x="{x:.1f}" y="{_TOP + height + 18}" text-anchor="middle">{100 * part:.0f} %</text>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{low + part * (high - low):.3f}</text>')
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        stride = max(1, len(line.x) // _POINTS_MAX)
        chosen = sorted({*range(0, len(line.x), stride), len(line.x) - 1})
        spots = " ".join("{:.1f},{:.1f}".format(*place(float(line.x[at]), float(line.y[at]))) for at in chosen)
        parts.append(f'<polyline points="{spots}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = _TOP + 14 + 20 * number
        parts.append(f'<path d="M{_LEFT + width + 14} {y - 4}h20" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{_LEFT + width + 40}" y="{y}">{escape(line.name)}</text>')
    parts.append(f'<text x="{_LEFT + width / 2}" y="{_HEIGHT - 14}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(16 {_TOP + height / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"
