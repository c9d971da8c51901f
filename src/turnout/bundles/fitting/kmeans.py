"""Spherical k-means: unit rows, cosine similarity, k-means++ seeding, the same result for the same input and seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from turnout.core.selection.arrays import Floats, Floats32, Ints

SEED, ROUNDS_MAX = 42, 100
_CLUSTERS_MIN, _CLUSTERS_MAX, _PROMPTS_PER_SQUARE = 4, 64, 4


def default_clusters(prompts: int) -> int:
    """Return K for a number of prompts: clamp(round(√(n / 4)), 4, 64), never more than prompts."""
    wanted = round(math.sqrt(prompts / _PROMPTS_PER_SQUARE))
    return min(max(_CLUSTERS_MIN, min(_CLUSTERS_MAX, int(wanted))), prompts)


def spherical_kmeans(
    vectors: Floats32,
    clusters: int,
    *,
    seed: int = SEED,
    rounds: int = ROUNDS_MAX,
    report: Callable[[int, int], object] = lambda done, total: None,  # noqa: ARG005 - names of the contract
) -> Floats:
    """Return K unit rows. `report(round, rounds)` is called after each round.

    An empty cluster is seeded again with the vector that lies farthest from its own centroid.
    """
    rng = np.random.default_rng(seed)
    centroids = _seeded(vectors, clusters, rng)
    assigned: Ints = np.full(len(vectors), -1)
    for done in range(rounds):
        similarity = vectors @ centroids.T.astype(np.float32)
        nearest = similarity.argmax(axis=1)
        if (nearest == assigned).all():
            break
        assigned = nearest
        closeness = similarity[np.arange(len(vectors)), assigned].astype(np.float64)
        for k in range(clusters):
            members = np.flatnonzero(assigned == k)
            if len(members) == 0:
                farthest = int(closeness.argmin())
                closeness[farthest] = np.inf  # the next empty cluster takes another one
                centroids[k] = vectors[farthest]
                continue
            total = vectors[members].sum(axis=0, dtype=np.float64)
            norm = np.sqrt(total @ total)
            if norm > 0.0:
                centroids[k] = total / norm
        report(done + 1, rounds)
    return centroids


def _seeded(vectors: Floats32, clusters: int, rng: np.random.Generator) -> Floats:
    centroids = np.empty((clusters, vectors.shape[1]))
    centroids[0] = vectors[int(rng.integers(len(vectors)))]
    distance = 1.0 - (vectors @ centroids[0].astype(np.float32)).astype(np.float64)
    for k in range(1, clusters):
        weights = np.clip(distance, 0.0, None)
        total = weights.sum()
        at = int(rng.choice(len(vectors), p=weights / total)) if total > 0.0 else int(rng.integers(len(vectors)))
        centroids[k] = vectors[at]
        distance = np.minimum(distance, 1.0 - (vectors @ centroids[k].astype(np.float32)).astype(np.float64))
    return centroids
