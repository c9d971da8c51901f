"""A picture as PNG: strokes with smoothed edges and a small built-in font, written with numpy and zlib alone."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from turnout.bundles.fitting.plot import HEIGHT, WIDTH, Picture, Stroke, Word

SCALE = 2
"""Pixels per unit of the picture."""
_ROWS, _COLUMNS = 7, 5
_ADVANCE = 6
_INK = (36, 41, 47)
# 5 × 7 dots per character, a byte per column, its lowest bit on top: printable ASCII from the blank to the tilde.
_FONT = bytes.fromhex(
    "0000000000 00005f0000 0007000700 147f147f14 242a7f2a12 2313086462 3649552250 0005030000 001c224100 0041221c00"
    "14083e0814 08083e0808 0050300000 0808080808 0060600000 2010080402 3e5149453e 00427f4000 4261514946 2141454b31"
    "1814127f10 2745454539 3c4a494930 0171090503 3649494936 064949291e 0036360000 0056360000 0814224100 1414141414"
    "0041221408 0201510906 324979413e 7e1111117e 7f49494936 3e41414122 7f4141221c 7f49494941 7f09090901 3e4149497a"
    "7f0808087f 00417f4100 2040413f01 7f08142241 7f40404040 7f020c027f 7f0408107f 3e4141413e 7f09090906 3e4151215e"
    "7f09192946 4649494931 01017f0101 3f4040403f 1f2040201f 3f4038403f 6314081463 0708700807 6151494543 007f414100"
    "0204081020 0041417f00 0402010204 4040404040 0001020400 2054545478 7f48444438 3844444420 384444487f 3854545418"
    "087e090102 0c5252523e 7f08040478 00447d4000 2040443d00 7f10284400 00417f4000 7c04180478 7c08040478 3844444438"
    "7c14141408 081414187c 7c08040408 4854545420 043f444020 3c4040207c 1c2040201c 3c4030403c 4428102844 0c5050503c"
    "4464544c44 0008364100 00007f0000 0041360800 1008081008"
)
_FIRST, _UNKNOWN = 32, ord("?")

_Canvas = npt.NDArray[np.float64]


def as_png(picture: Picture) -> bytes:
    """Return a picture as an 8-bit RGB image."""
    canvas = np.full((HEIGHT * SCALE, WIDTH * SCALE, 3), 255.0)
    for stroke in picture.strokes:
        _draw(canvas, stroke)
    for word in picture.words:
        _write(canvas, word)
    rows = np.rint(canvas).astype(np.uint8).reshape(len(canvas), -1)
    raw = np.hstack((np.zeros((len(rows), 1), dtype=np.uint8), rows)).tobytes()  # each row begins with its filter: none
    head = struct.pack(">IIBBBBB", WIDTH * SCALE, HEIGHT * SCALE, 8, 2, 0, 0, 0)
    parts = (_chunk(b"IHDR", head), _chunk(b"IDAT", zlib.compress(raw, 9)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _draw(canvas: _Canvas, stroke: Stroke) -> None:
    """Cover each pixel by its distance from the nearest segment, so that edges are smooth and corners round."""
    colour = np.array([int(stroke.colour[at : at + 2], 16) for at in (1, 3, 5)], dtype=np.float64)
    points = np.array(stroke.points) * SCALE
    reach = stroke.width * SCALE / 2 + 0.5
    covered = np.zeros(canvas.shape[:2])
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        left, right = _span(min(x0, x1) - reach, max(x0, x1) + reach, canvas.shape[1])
        top, bottom = _span(min(y0, y1) - reach, max(y0, y1) + reach, canvas.shape[0])
        y, x = np.mgrid[top:bottom, left:right] + 0.5
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-9), 0.0, 1.0)
        away = np.hypot(x - x0 - along * dx, y - y0 - along * dy)
        part = covered[top:bottom, left:right]
        np.maximum(part, np.clip(reach - away, 0.0, 1.0), out=part)
    canvas += covered[:, :, None] * (colour - canvas)


def _write(canvas: _Canvas, word: Word) -> None:
    size = SCALE  # a dot of the font is one unit of the picture
    length = (len(word.text) * _ADVANCE - 1) * size
    shift = {"start": 0, "middle": length // 2, "end": length}[word.anchor]
    x, y = round(word.x * SCALE), round(word.y * SCALE)
    for column, row in _dots(word.text):
        along, up = column * size - shift, (_ROWS - row) * size
        left, top = (x - up, y - along - size) if word.turned else (x + along, y - up)
        canvas[max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = _INK


def _dots(text: str) -> Iterator[tuple[int, int]]:
    """Return (column, row) of every dot of a text."""
    for number, character in enumerate(text):
        code = ord(character) - _FIRST
        at = (code if 0 <= code < len(_FONT) // _COLUMNS else _UNKNOWN - _FIRST) * _COLUMNS
        for column, dots in enumerate(_FONT[at : at + _COLUMNS]):
            for row in range(_ROWS):
                if dots >> row & 1:
                    yield number * _ADVANCE + column, row


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    """Return the pixels between two coordinates that lie on the canvas."""
    return min(size, max(0, int(low))), max(0, min(size, int(high) + 1))
