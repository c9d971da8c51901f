"""The least similarity of a semantic match: the configured one, the bundle's over it, the request's if tighter."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def threshold_of(
    configured: float, bundle: float | None, per_cluster: Mapping[int, float], asked: float | None
) -> Callable[[int], float]:
    """Return the threshold by cluster; what a request asks for can only raise it."""
    base = configured if bundle is None else bundle

    def by_cluster(cluster: int) -> float:
        least = per_cluster.get(cluster, base)
        return least if asked is None else max(least, asked)

    return by_cluster
