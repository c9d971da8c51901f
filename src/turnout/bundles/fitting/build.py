"""From tables to a bundle: the files that `writing` puts on disk, and the same bundle in memory for judging."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from turnout.bundles.fitting.fit import Fitted
from turnout.bundles.fitting.labels import Labels
from turnout.bundles.reading import parse
from turnout.bundles.writing import files_of
from turnout.core.selection.bundle import DEFAULT_TOP_P, Bundle
from turnout.core.selection.embedder import Embedder

_BYTES_PER_TOKEN = 4.0


class Price(msgspec.Struct, frozen=True, gc=False):
    """USD per 1M tokens."""

    input: float
    output: float


def axes_of(labels: Labels, prices: Mapping[str, Price]) -> dict[str, dict[str, float | None]]:
    """Return the axes: given prices, else what labelled costs come to per prompt token; measured times and lengths.

    A cost per prompt holds input and output together; per 1M prompt tokens it ranks models all the same.
    """
    tokens = np.array(
        [max(1.0, len(prompt.encode("utf-8", "surrogatepass")) / _BYTES_PER_TOKEN) for prompt in labels.prompts]
    )
    axes: dict[str, dict[str, float | None]] = {}
    for column, model in enumerate(labels.models):
        price = prices.get(model)
        per_1m: float | None = None
        if price is None and labels.costs is not None:
            known = ~np.isnan(labels.costs[:, column])
            if known.any():
                per_1m = round(float(labels.costs[known, column].sum() / tokens[known].sum() * 1e6), 6)
        axes[model] = {
            "input_per_1m_usd": per_1m if price is None else price.input,
            "output_per_1m_usd": None if price is None else price.output,
            "ttft_s": _mean(labels.ttft_s, column),
            "tps": None,
            "verbosity_tokens": _mean(labels.tokens_out, column),
        }
    return axes


def bundle_files(
    version: str,
    labels: Labels,
    fitted: Fitted,
    embedder: Embedder,
    *,
    prices: Mapping[str, Price],
    provider: str,
    about: Mapping[str, Any],
) -> dict[str, bytes]:
    """Return the files of the fitted bundle; nothing in them depends on the time or the machine."""
    clusters = len(fitted.centroids)
    training: dict[str, Any] = {"k": clusters, "top_p": min(DEFAULT_TOP_P, clusters), **about}
    if fitted.abstain_similarity is not None:
        training["abstain_similarity"] = round(fitted.abstain_similarity, 9)
    order = sorted(range(len(labels.models)), key=lambda column: labels.models[column].encode())
    return files_of(
        centroids=fitted.centroids,
        quality={
            labels.models[column]: [round(value, 9) for value in fitted.quality[:, column].tolist()] for column in order
        },
        axes=axes_of(labels, prices),
        registry=[
            {"model": labels.models[column], "provider": provider, "bench_column": labels.models[column]}
            for column in order
        ],
        meta={
            "format_version": 2,
            "version": version,
            "parent": "",
            "status": "candidate",
            "embedder": {"model": embedder.id, "embed_dim": embedder.dim, "max_tokens": 0},
            "training": training,
        },
        head=None if fitted.head is None else fitted.head[order],
    )


def in_memory(labels: Labels, fitted: Fitted, embedder: Embedder, prices: Mapping[str, Price]) -> Bundle:
    """Return the bundle as a reader of its files would see it."""
    files = bundle_files("candidate", labels, fitted, embedder, prices=prices, provider="any", about={})
    return parse("candidate", files)


def _mean(table: Any, column: int) -> float | None:
    if table is None:
        return None
    known = table[:, column][~np.isnan(table[:, column])]
    return round(float(known.mean()), 6) if len(known) and math.isfinite(float(known.mean())) else None
