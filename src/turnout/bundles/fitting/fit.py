"""From labelled, embedded prompts to the tables of a bundle: clusters, quality per cluster, linear head, abstention.

No label ever enters a feature: the embedding and the length are functions of the text alone, and what is judged on a
prompt was fitted without it (`folds`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
import numpy as np

from turnout.bundles.fitting.kmeans import SEED, default_clusters, spherical_kmeans
from turnout.core.selection.arrays import Floats, Floats32, Ints
from turnout.core.selection.embedder import Embedder, NoText, length_feature, tail

TOP, SHRINKAGE, RIDGE = 4, 10.0, 10.0
Scoring = Literal["zscore", "none", "minmax"]
_HELD_OUT = 5


class Embedded(msgspec.Struct, frozen=True):
    """Unit vectors and length features of prompts; a prompt without text has a row of zeros."""

    vectors: Floats32
    lengths: Floats

    def take(self, rows: Ints) -> Embedded:
        """Return some of the prompts."""
        return Embedded(self.vectors[rows], self.lengths[rows])


class Fitted(msgspec.Struct, frozen=True):
    """The tables of a fit: centroids K × dim, quality K × M, head M × (dim + 1) or None."""

    centroids: Floats
    quality: Floats
    head: Floats | None = None
    abstain_similarity: float | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How to fit."""

    clusters: int | None = None
    scoring: Scoring = "zscore"
    head_scale: float = 0.0
    """How much of the ridge head is added: the slope that held-out residuals have on it; 0 means no head."""
    abstain: float | None = None
    seed: int = SEED


def embed_all(
    prompts: tuple[str, ...],
    embedder: Embedder,
    max_prompt_bytes: int,
    report: Callable[[int, int], object] = lambda done, total: None,  # noqa: ARG005 - names of the contract
) -> Embedded:
    """Embed prompts exactly as a request's text is embedded."""
    vectors = np.zeros((len(prompts), embedder.dim), dtype=np.float32)
    lengths = np.empty(len(prompts))
    for row, prompt in enumerate(prompts):
        lengths[row] = length_feature(len(prompt.encode("utf-8", "surrogatepass")))
        try:
            vectors[row] = embedder.embed(tail(prompt, max_prompt_bytes))
        except NoText:
            continue
        finally:
            report(row + 1, len(prompts))
    return Embedded(vectors, lengths)


def normalised(scores: Floats, scoring: Scoring) -> Floats:
    """Return each prompt's scores on one scale, so that a hard prompt counts as much as an easy one; NaN stays NaN."""
    if scoring == "none":
        return scores
    counted = ~np.isnan(scores)
    count = np.maximum(counted.sum(axis=1, keepdims=True), 1)
    filled = np.where(counted, scores, 0.0)
    if scoring == "minmax":
        low = np.where(counted, scores, np.inf).min(axis=1, keepdims=True)
        shifted = scores - low
        spread = np.where(counted, scores, -np.inf).max(axis=1, keepdims=True) - low
    else:
        mean = filled.sum(axis=1, keepdims=True) / count
        shifted = scores - mean
        spread = np.sqrt(np.where(counted, shifted**2, 0.0).sum(axis=1, keepdims=True) / count)
    scaled = np.divide(shifted, spread, out=np.zeros_like(scores), where=spread > 0.0)
    return np.where(counted, scaled, np.nan)


def fit(
    embedded: Embedded,
    scores: Floats,
    plan: Plan,
    report: Callable[[int, int], object] = lambda done, total: None,  # noqa: ARG005 - names of the contract
) -> Fitted:
    """Fit all tables. `scores` is N × M, NaN without a label."""
    has_text = embedded.vectors.any(axis=1)
    vectors = embedded.vectors[has_text]
    if len(vectors) == 0:
        raise ValueError("no prompt has any text, expected at least one")
    wanted = plan.clusters or default_clusters(len(vectors))
    clusters = min(wanted, len(vectors))
    centroids = spherical_kmeans(vectors, clusters, seed=plan.seed, report=report)
    targets = normalised(scores[has_text], plan.scoring)
    quality = quality_means(centroids, vectors, targets)
    head = None
    if plan.head_scale > 0.0:
        head = plan.head_scale * ridge(vectors, embedded.lengths[has_text], targets)
    abstain = None
    if plan.abstain is not None:
        abstain = float(np.quantile(_held_out_similarity(vectors, clusters, plan.seed), plan.abstain))
    return Fitted(centroids, quality, head, abstain)


def quality_means(centroids: Floats, vectors: Floats32, targets: Floats) -> Floats:
    """Return Q[k][m]: a prompt counts in its top clusters; shrunk to the model's mean by ten prompts' weight."""
    top = min(TOP, len(centroids))
    similarity = np.round(vectors.astype(np.float64) @ centroids.T, 9)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :top]
    member = np.zeros_like(similarity)
    np.put_along_axis(member, nearest, 1.0, axis=1)
    counted = ~np.isnan(targets)
    sums = member.T @ np.where(counted, targets, 0.0)
    counts = member.T @ counted.astype(np.float64)
    means = np.where(counted, targets, 0.0).sum(axis=0) / np.maximum(counted.sum(axis=0), 1)
    table: Floats = (sums + SHRINKAGE * means) / (counts + SHRINKAGE)
    return table


def ridge(vectors: Floats32, lengths: Floats, targets: Floats) -> Floats:
    """Return M × (dim + 1) weights of (embedding, length) on centred scores, λ = 10, from labelled prompts."""
    features = np.hstack([vectors.astype(np.float64), lengths[:, None]])
    head = np.zeros((targets.shape[1], features.shape[1]))
    labelled = ~np.isnan(targets)
    if labelled.all() and len(targets):  # one system for all models
        return _solved(features, targets - targets.mean(axis=0)).T
    for model in range(targets.shape[1]):
        some = labelled[:, model]
        if some.any():
            y = targets[some, model]
            head[model] = _solved(features[some], y - y.mean())
    return head


def _solved(x: Floats, y: Floats) -> Floats:
    """Return the weights; with fewer prompts than features by the smaller system, which has the same solution."""
    rows, size = x.shape
    if rows < size:
        return x.T @ np.linalg.solve(x @ x.T + RIDGE * np.eye(rows), y)
    return np.asarray(np.linalg.solve(x.T @ x + RIDGE * np.eye(size), x.T @ y), dtype=np.float64)


def _held_out_similarity(vectors: Floats32, clusters: int, seed: int) -> Floats:
    """Return each prompt's similarity to the nearest centroid of clusters that were made without it."""
    rng = np.random.default_rng(seed)
    fold = rng.permutation(len(vectors)) % _HELD_OUT
    nearest = np.empty(len(vectors))
    for number in range(_HELD_OUT):
        out = fold == number
        rest = vectors[~out]
        if not out.any() or len(rest) == 0:
            continue
        centroids = spherical_kmeans(rest, min(clusters, len(rest)), seed=seed)
        nearest[out] = (vectors[out].astype(np.float64) @ centroids.T).max(axis=1)
    return nearest
