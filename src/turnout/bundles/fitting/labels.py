"""Labelled data: prompts with a score per model, from CSV or JSON lines, long or wide, gzip or not.

Long rows: `prompt, model, score [, cost_usd, ttft_s, tokens_out, group]`. Wide rows: `prompt`, one column per model and
optionally `<model>|total_cost`, `group`. A group names where a prompt comes from; it is reported on, never a feature.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from turnout.core.selection.arrays import Floats, Ints

_COST_SUFFIX = "|total_cost"
_LONG = ("prompt", "model", "score")
_FIELD_MAX_BYTES = 64 * 1024 * 1024


class LabelError(ValueError):
    """Labels that cannot be used: names file, row, column, the value seen and what was expected."""


class Labels(msgspec.Struct, frozen=True):
    """N prompts × M models; NaN where a model has no label for a prompt."""

    prompts: tuple[str, ...]
    groups: tuple[str, ...]
    models: tuple[str, ...]
    scores: Floats
    costs: Floats | None = None
    ttft_s: Floats | None = None
    tokens_out: Floats | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Ints | Sequence[int]) -> Labels:
        """Return some of the prompts."""
        chosen = [int(row) for row in rows]

        def some(table: Floats | None) -> Floats | None:
            return None if table is None else table[chosen]

        return Labels(
            tuple(self.prompts[row] for row in chosen),
            tuple(self.groups[row] for row in chosen),
            self.models,
            self.scores[chosen],
            some(self.costs),
            some(self.ttft_s),
            some(self.tokens_out),
        )

    def only(self, models: Sequence[str]) -> Labels:
        """Return some of the models, in this order."""
        missing = [model for model in models if model not in self.models]
        if missing:
            raise LabelError(f"model {missing[0]!r}: expected one of {', '.join(self.models)}")
        columns = [self.models.index(model) for model in models]

        def some(table: Floats | None) -> Floats | None:
            return None if table is None else table[:, columns]

        return Labels(
            self.prompts,
            self.groups,
            tuple(models),
            self.scores[:, columns],
            some(self.costs),
            some(self.ttft_s),
            some(self.tokens_out),
        )


def read(path: Path, *, wide: bool) -> Labels:
    """Read a file of labels.

    Raises:
        LabelError: the file cannot be read, or a row has the wrong shape.

    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, gzip.BadGzipFile) as error:
        seen = (error.strerror if isinstance(error, OSError) else None) or error
        raise LabelError(f"{path}: expected a readable file in UTF-8, got {seen}") from None
    name = path.name.removesuffix(".gz")
    rows = _json_lines(path, text) if name.endswith((".jsonl", ".ndjson")) else _csv(text)
    labels = _wide(path, rows) if wide else _long(path, rows)
    if not labels.prompts:
        raise LabelError(f"{path}: expected at least one row, got none")
    return labels


def _csv(text: str) -> Iterable[dict[str, Any]]:
    csv.field_size_limit(_FIELD_MAX_BYTES)
    return csv.DictReader(io.StringIO(text, newline=""))


def _json_lines(path: Path, text: str) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise LabelError(f"{path}:{number}: expected a JSON object, got {error}") from None
        if not isinstance(row, dict):
            raise LabelError(f"{path}:{number}: expected a JSON object, got {line[:64]!r}")
        yield row


def _wide(path: Path, rows: Iterable[dict[str, Any]]) -> Labels:
    prompts: list[str] = []
    groups: list[str] = []
    scores: list[list[float]] = []
    costs: list[list[float]] = []
    models: list[str] = []
    for number, row in enumerate(rows, 1):
        if not models:
            models = [name for name in row if name not in ("prompt", "group") and not name.endswith(_COST_SUFFIX)]
            if not models:
                raise LabelError(f"{path}: expected a column per model, got {', '.join(row)}")
        prompts.append(_text(path, number, row, "prompt"))
        groups.append(str(row.get("group") or ""))
        scores.append([_number(path, number, row, model) for model in models])
        costs.append([_number(path, number, row, model + _COST_SUFFIX) for model in models])
    return Labels(
        tuple(prompts), tuple(groups), tuple(models), _table(scores, len(models)), _known(_table(costs, len(models)))
    )


def _long(path: Path, rows: Iterable[dict[str, Any]]) -> Labels:
    prompts: dict[str, int] = {}
    models: dict[str, int] = {}
    groups: list[str] = []
    cells: list[tuple[int, int, float, float, float, float]] = []
    for number, row in enumerate(rows, 1):
        if missing := [name for name in _LONG if row.get(name) in (None, "")]:
            hint = "" if number > 1 else " (a column for each model needs --wide)"
            raise LabelError(f"{path}: row {number}: expected a {missing[0]}, got nothing{hint}")
        prompt, model = _text(path, number, row, "prompt"), _text(path, number, row, "model")
        at = prompts.setdefault(prompt, len(prompts))
        if at == len(groups):
            groups.append(str(row.get("group") or ""))
        values = [_number(path, number, row, name) for name in ("score", "cost_usd", "ttft_s", "tokens_out")]
        cells.append((at, models.setdefault(model, len(models)), *values))  # type: ignore[arg-type]
    shape = (len(prompts), len(models))
    sums = np.zeros((4, *shape))
    seen = np.zeros((4, *shape))
    for at, column, *values in cells:
        for kind, value in enumerate(values):
            if not math.isnan(value):  # several runs of one model on one prompt count as their mean
                sums[kind, at, column] += value
                seen[kind, at, column] += 1
    with np.errstate(invalid="ignore"):
        tables = [np.where(seen[kind] > 0, sums[kind] / seen[kind], np.nan) for kind in range(4)]
    return Labels(tuple(prompts), tuple(groups), tuple(models), tables[0], *[_known(table) for table in tables[1:]])


def _text(path: Path, number: int, row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise LabelError(f"{path}: row {number}: {name}: expected text, got {value!r:.64}")
    return value


def _number(path: Path, number: int, row: dict[str, Any], name: str) -> float:
    value = row.get(name)
    if value in (None, ""):
        return math.nan
    try:
        found = float(value) if not isinstance(value, bool) else float("x")
    except (TypeError, ValueError):
        found = math.inf
    if not math.isfinite(found):
        raise LabelError(f"{path}: row {number}: {name}: expected a finite number, got {value!r:.64}")
    return found


def _table(rows: list[list[float]], columns: int) -> Floats:
    return np.array(rows, dtype=np.float64).reshape(len(rows), columns)


def _known(table: Floats) -> Floats | None:
    return None if np.isnan(table).all() else table
