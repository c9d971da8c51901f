"""A loaded bundle: fitted tables as immutable arrays, already checked. Columns are deployed models, sorted by name.

Nothing here reads a file; `turnout.bundles` does, and refuses what breaks a rule of selection §2. NaN stands for
"unknown" in the axes and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from turnout.core.selection.arrays import Floats, frozen
from turnout.core.selection.knobs import Defaults

DEFAULT_TOP_P = 4


class Axes(msgspec.Struct, frozen=True):
    """What a model costs and how fast it is, one value per deployed model; NaN is unknown.

    Prices are micro-USD per 1M tokens, `ttft_s` seconds, `tps` tokens per second, `verbosity` expected answer tokens.
    """

    price_in: Floats
    price_out: Floats
    ttft_s: Floats
    tps: Floats
    verbosity: Floats

    def median_verbosity(self) -> float:
        """Return the upper median over models that have a value; 1 without any."""
        known = sorted(self.verbosity[~np.isnan(self.verbosity)].tolist())
        return float(known[len(known) // 2]) if known else 1.0


class CacheThresholds(msgspec.Struct, frozen=True):
    """Least similarity of a semantic match: the default, and clusters that have their own."""

    default: float | None = None
    per_cluster: Mapping[int, float] = {}


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """One version, as requests see it.

    `quality` is K × M (None in v1), `rankings` K × M (required in v1), `head` M × (dim + 1) in the order of `models`.
    """

    version: str
    digest: str
    embedder_id: str
    centroids: Floats
    models: tuple[str, ...]
    providers: Mapping[str, tuple[str, ...]] = {}
    quality: Floats | None = None
    rankings: Floats | None = None
    axes: Axes | None = None
    defaults: Defaults
    top_p: int = DEFAULT_TOP_P
    head: Floats | None = None
    abstain_similarity: float | None = None
    cache: CacheThresholds = CacheThresholds()
    price_cached: Mapping[str, int] = {}
    """Of the price book, micro-USD per 1M cached input tokens."""

    @property
    def clusters(self) -> int:
        """K."""
        return int(self.centroids.shape[0])

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        return int(self.centroids.shape[1])

    def prices(self, model: str) -> tuple[int | None, int | None]:
        """Return what a model's input and output cost, micro-USD per 1M tokens; None is unknown."""
        if self.axes is None or model not in self.models:
            return None, None
        column = self.models.index(model)
        both = float(self.axes.price_in[column]), float(self.axes.price_out[column])
        return None if math.isnan(both[0]) else round(both[0]), None if math.isnan(both[1]) else round(both[1])

    @property
    def is_v2(self) -> bool:
        """Tell whether requests can turn the knobs; v1 has them baked in."""
        return self.quality is not None


class Price(msgspec.Struct, frozen=True, gc=False):
    """What the price book in force says about one model, micro-USD per 1M tokens; None is unknown."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    """Of input that an engine reads from its cache."""


def with_prices(bundle: Bundle, book: Mapping[str, Price]) -> Bundle:
    """Return the bundle at the price book's prices where the book has the model; once per change, never per request."""
    if bundle.axes is None or not any(model in book for model in bundle.models):
        return bundle
    price_in, price_out = bundle.axes.price_in.copy(), bundle.axes.price_out.copy()
    for column, model in enumerate(bundle.models):
        price = book.get(model)
        if price is not None:
            price_in[column] = np.nan if price.input is None else price.input
            price_out[column] = np.nan if price.output is None else price.output
    axes = msgspec.structs.replace(bundle.axes, price_in=frozen(price_in), price_out=frozen(price_out))
    cached = {model: book[model].cached for model in bundle.models if model in book}
    return msgspec.structs.replace(
        bundle, axes=axes, price_cached={model: price for model, price in cached.items() if price is not None}
    )


def with_timings(bundle: Bundle, ttft_s: Mapping[str, float]) -> Bundle:
    """Return the bundle with observed times to first token where there are any."""
    if bundle.axes is None or not any(model in ttft_s for model in bundle.models):
        return bundle
    seen = bundle.axes.ttft_s.copy()
    for column, model in enumerate(bundle.models):
        if model in ttft_s:
            seen[column] = ttft_s[model]
    axes = msgspec.structs.replace(bundle.axes, ttft_s=frozen(seen))
    return msgspec.structs.replace(bundle, axes=axes)
