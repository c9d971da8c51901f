"""Writing a bundle: equal content gives equal bytes, a version appears whole by one rename, and none is replaced."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # its stubs would be one more dependency

from turnout.bundles import binary, metadata, tables
from turnout.bundles.directory import LATEST, BundleDirectory, is_version
from turnout.bundles.fault import BundleError
from turnout.bundles.reading import parse
from turnout.core.selection.arrays import Floats

Document = Mapping[str, Any]


def files_of(
    *,
    centroids: Floats,
    quality: Mapping[str, list[float]],
    axes: Mapping[str, Document],
    registry: list[Document],
    meta: Document,
    head: Floats | None = None,
    rankings: Mapping[str, list[float]] | None = None,
) -> dict[str, bytes]:
    """Return the bytes of a v2 bundle. `quality` and `rankings` are columns: one value per cluster and model."""
    files = {
        binary.CENTROIDS: binary.write_centroids(centroids),
        tables.QUALITY: _json({"quality_means": _rows(quality)}),
        tables.AXES: _json({"axes": axes}),
        tables.REGISTRY: _json({"deployed_models": registry}),
        metadata.FILE: yaml.safe_dump(dict(meta), sort_keys=True, allow_unicode=True).encode(),
    }
    if rankings is not None:
        files[tables.RANKINGS] = _json({"rankings": _rows(rankings)})
    if head is not None:
        files[binary.HEAD] = binary.write_head(head)
    return files


def write(directory: BundleDirectory, version: str, files: Mapping[str, bytes]) -> Path:
    """Check the files as a reader would, then put them under the root by one rename.

    Raises:
        BundleError: a bad name, a version that exists, or content that no reader would take.

    """
    if not is_version(version):
        raise BundleError(version, "", "", version, "a version name: letters, digits, dot, dash, underscore, up to 64")
    parse(version, files)
    target = directory.root / version
    directory.root.mkdir(parents=True, exist_ok=True)
    if version in directory.versions():
        raise BundleError(version, "", "", "the version exists", "a new name: versions are immutable")
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=directory.root))
    try:
        for name, raw in files.items():
            (scratch / name).write_bytes(raw)
        scratch.chmod(0o755)
        scratch.rename(target)  # onto an existing, non-empty folder this fails: the race has one winner
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise BundleError(version, "", "", error.strerror, "a folder that can be written") from None
    return target


def promote(directory: BundleDirectory, version: str) -> None:
    """Make `latest` name a version that loads, by one rename."""
    name, files = directory.read(version)
    parse(name, files)
    scratch = directory.root / f".{LATEST}-{os.getpid()}"
    scratch.write_text(name + "\n", encoding="utf-8")
    scratch.replace(directory.root / LATEST)


def _rows(columns: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    length = len(next(iter(columns.values())))
    return {str(k): {model: values[k] for model, values in columns.items()} for k in range(length)}


def _json(value: Document) -> bytes:
    return (json.dumps(_plain(value), sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
