"""An exported encoder as embedder, with a tiny model written here byte by byte: a table of vectors looked up by id."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from turnout.bundles.fault import BundleError
from turnout.bundles.onnx import open_onnx
from turnout.core.selection.embedder import NoText

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


def model() -> bytes:
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
def folder(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers", reason="the extra onnx is not installed: no tokenizers")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed: no onnxruntime")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "model.onnx").write_bytes(model())
    (tmp_path / "manifest.json").write_text(json.dumps({"id": "tiny-1", "dim": 3}))
    return tmp_path


def test_tokens_are_pooled_and_scaled_to_length_1(folder: Path) -> None:
    embedder = open_onnx(folder)
    assert (embedder.id, embedder.dim, embedder.inline) == ("tiny-1", 3, False)
    assert embedder.embed("hot cold") == pytest.approx(np.array([1, 2, 0]) / np.sqrt(5))
    assert embedder.embed("hot").dtype == np.float32
    for nothing in ("", "void"):
        with pytest.raises(NoText):
            embedder.embed(nothing)


def test_the_last_tokens_count_and_the_first_vector_can(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps({"id": "t", "dim": 3, "max_tokens": 2, "pooling": "first"}))
    assert open_onnx(folder).embed("cold cold hot cold") == pytest.approx([1, 0, 0])


@pytest.mark.parametrize(
    ("manifest", "field"),
    [
        ('{"id":"t"}', "manifest.json"),
        ('{"id":"t","dim":0}', "manifest.json"),
        ('{"id":"t","dim":3,"model":"../m.onnx"}', "model, tokenizer"),
        ('{"id":"t","dim":3,"modle":"m"}', "modle"),
    ],
)
def test_a_bad_manifest_is_refused_by_name(tmp_path: Path, manifest: str, field: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(BundleError, match=field):
        open_onnx(tmp_path)


def test_a_file_that_is_no_model_is_refused(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        open_onnx(folder)
