"""The JSON tables of a bundle: registry, quality means or rankings per cluster, axes (selection §2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

import msgspec
import numpy as np

from turnout.bundles.documents import Node
from turnout.core.selection.arrays import Floats, frozen
from turnout.core.selection.bundle import Axes

QUALITY, AXES, REGISTRY, RANKINGS, FEATURES = (
    "quality_means.json",
    "model_axes.json",
    "model_registry.json",
    "rankings.json",
    "model_features.json",
)
_MICRO_PER_1M_OF_1K, _MICRO = Decimal(10**9), Decimal(10**6)
_PRICE_MAX = 2**53


class Registered(msgspec.Struct, frozen=True):
    """One line of the registry."""

    model: str
    provider: str
    bench_column: str


def read_registry(document: Node) -> list[Registered]:
    """Return the registry's models, in its order, duplicates included (a model may have several providers)."""
    listed = document.get("deployed_models")
    found = [
        Registered(node.get("model").text(), node.get("provider").text(), node.get("bench_column").text())
        for node in listed
    ]
    if not found:
        listed.wrong("at least one model")
    return found


def read_rows(document: Node, clusters: int, models: Sequence[str]) -> Floats:
    """Return the K × M table of `{"<k>": {model: number}}`; every cluster and every deployed model must be there."""
    rows: list[list[float] | None] = [None] * clusters
    for name, row in document.items():
        canonical = name.isascii() and name.isdigit() and str(int(name)) == name and len(name) <= len(str(clusters))
        if not canonical or int(name) >= clusters:
            document.wrong(f"keys that are cluster numbers 0 to {clusters - 1}", name)
        if not row.object():
            row.wrong("a number for each model", "an empty object")
        for model, node in row.items():
            if model not in models:
                node.number()  # of a model that is not deployed: checked all the same
        rows[int(name)] = [_of(row, model).number() for model in models]
    missing = next((number for number, row in enumerate(rows) if row is None), None)
    if missing is not None:
        document.wrong("a row for every cluster", f"none for {missing}")
    return frozen(np.array(rows, dtype=np.float64))


def read_axes(document: Node, models: Sequence[str]) -> Axes:
    """Return the axes of the deployed models; null is unknown."""
    columns: dict[str, list[float]] = {name: [] for name in Axes.__struct_fields__}
    for model in models:
        node = _of(document, model)
        node.object()
        columns["price_in"].append(_price(node, "input"))
        columns["price_out"].append(_price(node, "output"))
        columns["ttft_s"].append(_axis(node.get("ttft_s")))
        columns["tps"].append(_axis(node.get("tps")))
        columns["verbosity"].append(_axis(node.get("verbosity_tokens")))
    return Axes(**{name: frozen(values) for name, values in columns.items()})


def read_features(document: Node, clusters: int, models: Sequence[str]) -> tuple[Floats, Axes]:
    """Return both tables of the optional one-file form."""
    each = document.get("models")
    table = np.empty((clusters, len(models)))
    for column, model in enumerate(models):
        probe = _of(each, model).get("psi_probe")
        values = [node.number() for node in probe]
        if len(values) != clusters:
            probe.wrong(f"{clusters} values, one for each cluster", f"{len(values)} values")
        table[:, column] = values
    axes: dict[str, object] = {model: each.get(model).get("operational").value for model in models}
    gathered = Node(each._version, FEATURES, axes, "models.operational")
    return frozen(table), read_axes(gathered, models)


def _of(document: Node, model: str) -> Node:
    if model not in document.object():
        document.wrong(f"a value for the deployed model {model}", "none")
    return document.get(model)


def _axis(node: Node) -> float:
    return node.number(0.0) if node else math.nan


def _price(axes: Node, side: str) -> float:
    """Return micro-USD per 1M tokens as a whole number; NaN when unknown."""
    per_1k, per_1m = axes.get(f"{side}_per_1k_usd"), axes.get(f"{side}_per_1m_usd")
    if per_1k and per_1m:
        per_1k.wrong(f"one unit for the {side} price, not both")
    node, scale = (per_1k, _MICRO_PER_1M_OF_1K) if per_1k else (per_1m, _MICRO)
    if not node:
        return math.nan
    value = node.decimal()
    if value < 0:
        node.wrong("a price of at least 0")
    micro = (value * scale).to_integral_value()
    if micro > _PRICE_MAX:
        node.wrong(f"a price of at most {_PRICE_MAX} micro-USD per 1M tokens")
    return float(micro)
