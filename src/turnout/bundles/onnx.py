"""An exported encoder as embedder: `manifest.json`, an ONNX model and its tokenizer in one folder (extra `onnx`).

The libraries are loaded by `open_onnx` alone, so a router whose configuration names no such folder never has them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from turnout.bundles.fault import BundleError
from turnout.core.selection.arrays import Floats32
from turnout.core.selection.embedder import NoText

MANIFEST = "manifest.json"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the folder says about itself. File names are relative to it."""

    id: str
    dim: int
    model: str = "model.onnx"
    tokenizer: str = "tokenizer.json"
    max_tokens: int = 512
    pooling: Literal["mean", "first"] = "mean"
    output: str = ""
    """Name of the output with token vectors; empty: the first one."""
    threads: int = 1


class OnnxEmbedder:
    """Token vectors of the encoder, pooled and scaled to length 1. Safe to use from several threads."""

    inline = False

    def __init__(self, manifest: Manifest, session: Any, tokenizer: Any) -> None:
        self._manifest, self._session, self._tokenizer = manifest, session, tokenizer
        self._inputs = tuple(one.name for one in session.get_inputs())
        self._output = manifest.output or session.get_outputs()[0].name

    @property
    def id(self) -> str:
        """As the manifest says."""
        return self._manifest.id

    @property
    def dim(self) -> int:
        """As the manifest says."""
        return self._manifest.dim

    def embed(self, text: str) -> Floats32:
        """Return the text's unit vector; raises `NoText` when it has no token."""
        ids = self._tokenizer.encode(text).ids[-self._manifest.max_tokens :]
        if not ids:
            raise NoText("the text has no token")
        row = np.array([ids], dtype=np.int64)
        known = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        [tokens] = self._session.run([self._output], {name: known[name] for name in self._inputs})
        pooled = tokens[0, 0] if self._manifest.pooling == "first" else tokens[0].mean(axis=0)
        norm = float(np.linalg.norm(pooled))
        if not norm > 0.0:
            raise NoText("the text's vector has no length")
        found: Floats32 = (pooled / norm).astype(np.float32)
        return found


def open_onnx(folder: Path) -> OnnxEmbedder:
    """Load an exported encoder.

    Raises:
        BundleError: the folder or the extra's libraries cannot be used.

    """
    manifest = _manifest(folder)
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
        tokenizers: Any = importlib.import_module("tokenizers")
    except ImportError as error:
        raise BundleError(
            manifest.id, MANIFEST, "embedder", str(error), "the extra onnx: pip install 'turnout[onnx]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = manifest.threads, 1
    try:
        session = onnxruntime.InferenceSession(
            str(folder / manifest.model), options, providers=["CPUExecutionProvider"]
        )
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / manifest.tokenizer))
    except Exception as error:  # noqa: BLE001 - both libraries raise bare exceptions of their own
        raise BundleError(manifest.id, manifest.model, "", str(error), "an ONNX model and its tokenizer") from None
    unknown = {one.name for one in session.get_inputs()} - {"input_ids", "attention_mask", "token_type_ids"}
    if unknown:
        raise BundleError(
            manifest.id, manifest.model, "inputs", ", ".join(sorted(unknown)),
            "of input_ids, attention_mask, token_type_ids only",
        )  # fmt: skip
    return OnnxEmbedder(manifest, session, tokenizer)


def _manifest(folder: Path) -> Manifest:
    try:
        found = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError("embedder_dir", MANIFEST, "", str(error), "a manifest of id and dim") from None
    for name in (found.model, found.tokenizer):
        if not name or Path(name).name != name:
            raise BundleError(found.id, MANIFEST, "model, tokenizer", name, "a plain file name")
    if not found.id or found.dim < 1 or found.max_tokens < 1 or found.threads < 1:
        raise BundleError(found.id, MANIFEST, "", found.dim, "an id, and dim, max_tokens and threads of at least 1")
    return found
