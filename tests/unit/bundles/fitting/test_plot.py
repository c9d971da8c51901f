"""The cost-quality plot in both formats: the same strokes and words, and files that others can read."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
import zlib

import numpy as np

from turnout.bundles.fitting.plot import HEIGHT, WIDTH, Line, Picture, Stroke, Word, as_svg, plan
from turnout.bundles.fitting.raster import SCALE, as_png

FALLING = Line("one & two", np.array([0.0, 1.0]), np.array([0.9, 0.2]))


def pixels(raw: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Read an image by the rules of PNG: signature, lengths, checksums, one filter byte per row."""
    assert raw.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(raw):
        (size,) = struct.unpack_from(">I", raw, at)
        kind, data = raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", raw, at + 8 + size) == (zlib.crc32(kind + data),)
        chunks[kind] = data
        at += 12 + size
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colours, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (width, height, depth, colours, rest) == (WIDTH * SCALE, HEIGHT * SCALE, 8, 2, [0, 0, 0])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_the_svg_is_plain_and_escaped() -> None:
    text = as_svg(plan("a < b", "x", "y", [FALLING]))
    root = ET.fromstring(text)
    words = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "one & two", "x", "y", "0 %", "100 %"} <= set(words)
    assert b"<script" not in text


def test_the_png_shows_lines_where_they_are() -> None:
    strokes = (Stroke(((10.0, 20.0), (200.0, 20.0)), "#ff0000", 2), Stroke(((50.0, 60.0), (50.0, 300.0)), "#0000ff"))
    found = pixels(as_png(Picture(strokes, ())))
    assert found[20 * SCALE, 100 * SCALE].tolist() == [255, 0, 0]
    assert found[20 * SCALE + 4 * SCALE, 100 * SCALE].tolist() == [255, 255, 255]
    assert found[200 * SCALE, 50 * SCALE].tolist()[2] == 255
    assert found[200 * SCALE, 50 * SCALE].tolist()[0] < 200
    assert (found[:, 250 * SCALE :] == 255).all()


def test_words_stand_at_their_place_and_read_upwards_when_turned() -> None:
    def extent(word: Word) -> tuple[int, int, int, int]:
        rows, columns = np.nonzero((pixels(as_png(Picture((), (word,)))) < 255).any(axis=2))
        return tuple(int(edge) // SCALE for edge in (columns.min(), columns.max(), rows.min(), rows.max()))  # type: ignore[return-value]

    left, right, top, bottom = extent(Word(100, 100, "HiH"))
    assert (left, bottom) == (100, 99)
    assert (right - left, bottom - top) == (16, 6)
    middle = extent(Word(100, 100, "HiH", "middle"))
    assert (middle[0] + middle[1]) // 2 in (99, 100)
    assert extent(Word(100, 100, "HiH", "end"))[1] in (98, 99)
    up = extent(Word(100, 100, "HiH", turned=True))
    assert (up[1] - up[0], up[3] - up[2]) == (6, 16)
    assert extent(Word(100, 100, "é")) == extent(Word(100, 100, "?"))  # what the font lacks


def test_equal_figures_give_equal_bytes_and_words_may_leave_the_ground() -> None:
    flat = Line("flat", np.array([0.0, 1.0]), np.array([0.5, 0.5]))
    picture = plan("t" * 500, "x", "y", [FALLING, flat])
    assert as_png(picture) == as_png(picture)
    pixels(as_png(Picture((Stroke(((-50.0, -50.0), (2000.0, 900.0)), "#000000", 3),), (Word(-9, 2, "out"),))))
