"""An exported encoder as embedder, with a tiny model written here byte by byte: a table of vectors looked up by id."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from turnout.bundles.fault import BundleError
from turnout.bundles.onnx import open_onnx
from turnout.core.selection.embedder import NoText


def test_tokens_are_pooled_and_scaled_to_length_1(encoder: Path) -> None:
    embedder = open_onnx(encoder)
    assert (embedder.id, embedder.dim, embedder.inline) == ("tiny-1", 3, False)
    assert embedder.embed("hot cold") == pytest.approx(np.array([1, 2, 0]) / np.sqrt(5))
    assert embedder.embed("hot").dtype == np.float32
    for nothing in ("", "void"):
        with pytest.raises(NoText):
            embedder.embed(nothing)


def test_the_last_tokens_count_and_the_first_vector_can(encoder: Path) -> None:
    (encoder / "manifest.json").write_text(json.dumps({"id": "t", "dim": 3, "max_tokens": 2, "pooling": "first"}))
    assert open_onnx(encoder).embed("cold cold hot cold") == pytest.approx([1, 0, 0])


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


def test_a_file_that_is_no_model_is_refused(encoder: Path) -> None:
    (encoder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        open_onnx(encoder)
