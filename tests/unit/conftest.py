"""What tests of several folders share: an exported encoder, written here byte by byte, that looks vectors up by id."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

WORDS = {"[UNK]": 0, "hot": 1, "cold": 2, "void": 3}
TABLE = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=np.float32)


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def _field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _value(name: str, element: int, *sizes: int | str) -> bytes:
    dims = b"".join(_field(1, _field(1, size) if isinstance(size, int) else _field(2, size)) for size in sizes)
    return _field(1, name) + _field(2, _field(1, _field(1, element) + _field(2, dims)))


def _model() -> bytes:
    """ONNX: `tokens = Gather(table, input_ids)`; float is element type 1, int64 is 7."""
    table = _field(1, TABLE.shape[0]) + _field(1, TABLE.shape[1]) + _field(2, 1) + _field(8, "table")
    node = _field(1, "table") + _field(1, "input_ids") + _field(2, "tokens") + _field(4, "Gather")
    graph = (
        _field(1, node)
        + _field(2, "tiny")
        + _field(5, table + _field(9, TABLE.tobytes()))
        + _field(11, _value("input_ids", 7, 1, "n"))
        + _field(12, _value("tokens", 1, 1, "n", 3))
    )
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """The folder of an encoder of `hot`, `cold` and `void` with the id `tiny-1`."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra onnx is not installed: no tokenizers")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed: no onnxruntime")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "encoder"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "model.onnx").write_bytes(_model())
    (folder / "manifest.json").write_text(json.dumps({"id": "tiny-1", "dim": 3}))
    return folder
