"""The two binary files of a bundle: centroids (`CRT1`) and the linear head (`LNH1`), little-endian float32 rows."""

from __future__ import annotations

import struct

import numpy as np

from turnout.bundles.fault import BundleError
from turnout.core.selection.arrays import Floats, frozen

CENTROIDS, HEAD = "centroids.bin", "linear_head.bin"
_HEADER = struct.Struct("<4sIII")
_VERSION = 1
ROWS_MAX, DIM_MAX, BYTES_MAX = 65_536, 16_384, 256 * 1024 * 1024
_NORM_SLACK = 1e-3


def read_centroids(version: str, raw: bytes) -> Floats:
    """Return the K × dim table of unit rows as float64."""
    table = _read(version, CENTROIDS, raw, b"CRT1", ("K", "dim"))
    norms = np.sqrt((table * table).sum(axis=1))
    off = np.abs(norms - 1.0) > _NORM_SLACK
    if off.any():
        row = int(off.argmax())
        raise BundleError(version, CENTROIDS, f"row {row}", f"norm {norms[row]:.6g}", "an L2 norm of 1 ± 0.001")
    return frozen(table)


def read_head(version: str, raw: bytes, models: int, dim: int) -> Floats:
    """Return the M × (dim + 1) weights: per embedding dimension, then of length."""
    table = _read(version, HEAD, raw, b"LNH1", ("M", "dim"), extra=1)
    if table.shape != (models, dim + 1):
        seen = f"{table.shape[0]} by {table.shape[1] - 1}"
        raise BundleError(version, HEAD, "M, dim", seen, f"{models} by {dim}, registry models and embedding")
    return frozen(table)


def write_centroids(table: Floats) -> bytes:
    """Return the file of a table."""
    return _HEADER.pack(b"CRT1", _VERSION, *table.shape) + table.astype("<f4").tobytes()


def write_head(table: Floats) -> bytes:
    """Return the file of a head."""
    return _HEADER.pack(b"LNH1", _VERSION, table.shape[0], table.shape[1] - 1) + table.astype("<f4").tobytes()


def _read(version: str, file: str, raw: bytes, magic: bytes, names: tuple[str, str], extra: int = 0) -> Floats:
    if len(raw) < _HEADER.size:
        raise BundleError(version, file, "size", len(raw), f"at least {_HEADER.size} bytes")
    if len(raw) > BYTES_MAX:
        raise BundleError(version, file, "size", len(raw), f"at most {BYTES_MAX} bytes")
    seen, number, rows, dim = _HEADER.unpack_from(raw)
    if seen != magic:
        raise BundleError(version, file, "magic", seen, magic.decode())
    if number != _VERSION:
        raise BundleError(version, file, "version", number, str(_VERSION))
    for name, value, most in ((names[0], rows, ROWS_MAX), (names[1], dim, DIM_MAX)):
        if not 1 <= value <= most:
            raise BundleError(version, file, name, value, f"1 to {most}")
    expected = _HEADER.size + 4 * rows * (dim + extra)
    if len(raw) != expected:
        raise BundleError(version, file, "size", len(raw), f"{expected} bytes for {rows} rows of {dim + extra}")
    table = np.frombuffer(raw, dtype="<f4", offset=_HEADER.size).reshape(rows, dim + extra).astype(np.float64)
    bad = ~np.isfinite(table)
    if bad.any():
        row, column = np.unravel_index(int(bad.argmax()), bad.shape)
        raise BundleError(version, file, f"row {row}, column {column}", table[row, column], "a finite number")
    return table
