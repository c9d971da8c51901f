"""The cost-quality plot: where its lines and words stand, and the same as SVG. No library and no script.

A picture is a list of strokes and words with their places, so that every format shows the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Literal

import msgspec

from turnout.core.selection.arrays import Floats

WIDTH, HEIGHT = 720, 460
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 40, 176, 56
_COLOURS = ("#1f6feb", "#8c959f", "#bf8700", "#1a7f37", "#cf222e", "#8250df")
_GRID, _INK = "#eaeef2", "#24292f"
_TICKS = 5
_POINTS_MAX = 400
_TITLE_MAX = 96

Anchor = Literal["start", "middle", "end"]


class Line(msgspec.Struct, frozen=True):
    """One line: x in [0, 1], y in the data's own unit."""

    name: str
    x: Floats
    y: Floats


class Stroke(msgspec.Struct, frozen=True):
    """A line through points, in pixels from the upper left."""

    points: tuple[tuple[float, float], ...]
    colour: str
    width: int = 1


class Word(msgspec.Struct, frozen=True):
    """Text with its base line at a point; `turned` reads upwards."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    turned: bool = False


class Picture(msgspec.Struct, frozen=True):
    """Everything on a white ground of WIDTH × HEIGHT."""

    strokes: tuple[Stroke, ...]
    words: tuple[Word, ...]


def plan(title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> Picture:
    """Place axes, lines and their names."""
    low = min(float(line.y.min()) for line in lines)
    high = max(float(line.y.max()) for line in lines)
    pad = (high - low) * 0.05 or 0.05
    low, high = low - pad, high + pad
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x * width, _TOP + (high - y) / (high - low) * height

    strokes, words = [], [Word(_LEFT, 24, title[:_TITLE_MAX])]
    for step in range(_TICKS + 1):
        part = step / _TICKS
        at, _ = place(part, low)
        _, level = place(0, low + part * (high - low))
        strokes.append(Stroke(((at, _TOP), (at, _TOP + height)), _GRID))
        strokes.append(Stroke(((_LEFT, level), (_LEFT + width, level)), _GRID))
        words.append(Word(at, _TOP + height + 18, f"{100 * part:.0f} %", "middle"))
        words.append(Word(_LEFT - 8, level + 4, f"{low + part * (high - low):.3f}", "end"))
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        stride = max(1, len(line.x) // _POINTS_MAX)
        chosen = sorted({*range(0, len(line.x), stride), len(line.x) - 1})
        strokes.append(Stroke(tuple([place(float(line.x[at]), float(line.y[at])) for at in chosen]), colour, 2))
        y = _TOP + 14 + 20 * number
        strokes.append(Stroke(((_LEFT + width + 14, y - 4), (_LEFT + width + 34, y - 4)), colour, 2))
        words.append(Word(_LEFT + width + 40, y, line.name))
    words.append(Word(_LEFT + width / 2, HEIGHT - 14, x_label, "middle"))
    words.append(Word(16, _TOP + height / 2, y_label, "middle", turned=True))
    return Picture(tuple(strokes), tuple(words))


def as_svg(picture: Picture) -> bytes:
    """Return a picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        f' font-family="sans-serif" font-size="12" fill="{_INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for stroke in picture.strokes:
        spots = " ".join(f"{x:.1f},{y:.1f}" for x, y in stroke.points)
        parts.append(f'<polyline points="{spots}" fill="none" stroke="{stroke.colour}" stroke-width="{stroke.width}"/>')
    for word in picture.words:
        place = f'x="{word.x:.1f}" y="{word.y:.1f}"'
        if word.turned:
            place = f'transform="translate({word.x:.1f} {word.y:.1f}) rotate(-90)"'
        parts.append(f'<text {place} text-anchor="{word.anchor}">{escape(word.text)}</text>')
    return ("\n".join([*parts, "</svg>"]) + "\n").encode()
