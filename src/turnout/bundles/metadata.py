"""`metadata.yaml` of a bundle to defaults, presets and thresholds, each checked against its range (selection §2)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from turnout.bundles.documents import Node
from turnout.core.selection import knobs
from turnout.core.selection.arrays import Floats, frozen
from turnout.core.selection.bundle import DEFAULT_TOP_P, CacheThresholds
from turnout.core.selection.knobs import Defaults, InvalidKnobs, Knobs, Preset

FILE = "metadata.yaml"
V1_EMBEDDER, V1_DIM = "jina-v2-base-code-int8", 768
_TOKENS_MAX, _RATIO_MAX = 100_000, 10.0


class Metadata(msgspec.Struct, frozen=True):
    """What a bundle says about itself."""

    embedder_id: str
    top_p: int
    defaults: Defaults
    abstain_similarity: float | None = None
    cache: CacheThresholds = CacheThresholds()
    parent: str = ""


def without(version: str, clusters: int, top_p: int | None) -> Metadata:
    """Return the metadata of a v1 bundle that has no such file."""
    nothing = Node(version, FILE, {}, "training")
    return Metadata(V1_EMBEDDER, _top_p(nothing, clusters, top_p), Defaults(knobs.default_knobs(clusters)))


def read_metadata(
    document: Node, clusters: int, dim: int, *, v2: bool, presets: Mapping[str, Preset], top_p: int | None
) -> Metadata:
    """Check the document against the bundle's geometry; `presets` are the operator's and win over the bundle's."""
    embedder = document.get("embedder")
    if embedder or v2:
        name = embedder.get("model").text()
        size = embedder.get("embed_dim")
        if size.whole(1, 2**31) != dim:
            size.wrong(f"{dim}, the dim of centroids.bin")
    else:
        name = V1_EMBEDDER
        if dim != V1_DIM:
            embedder.wrong(f"an embedder block: {V1_EMBEDDER} has {V1_DIM} dimensions, the centroids {dim}", "nothing")
    training = document.get("training").or_object()
    return Metadata(
        name,
        _top_p(training, clusters, top_p),
        _defaults(training, clusters, presets),
        training.get("abstain_similarity").number(-1.0, 1.0) if training.get("abstain_similarity") else None,
        _cache(document.get("cache_config"), clusters),
        str(document.get("parent").value or ""),
    )


def _top_p(training: Node, clusters: int, configured: int | None) -> int:
    node = training.get("top_p")
    found = configured if configured is not None else (node.whole(1, 2**31) if node else DEFAULT_TOP_P)
    if not 1 <= found <= clusters:
        node.wrong(f"a top_p of 1 to {clusters}, the number of clusters", found)
    return found


def _defaults(training: Node, clusters: int, presets: Mapping[str, Preset]) -> Defaults:
    block = training.get("default_routing_knobs")
    floor = None
    effective = knobs.default_knobs(clusters)
    if block:
        alpha = block.get("alpha")
        effective = Knobs(
            _vector(alpha, clusters) if alpha else effective.alpha,
            _optional(block.get("speed_weight"), 0.0, 1.0),
            _optional(block.get("output_cost_ratio"), 0.0, _RATIO_MAX),
            block.get("expected_output_tokens").whole(0, _TOKENS_MAX)
            if block.get("expected_output_tokens")
            else knobs.DEFAULT_TOKENS,
            block.get("per_model_verbosity").flag() if block.get("per_model_verbosity") else False,
        )
        if block.get("alpha_floor"):
            floor = _vector(block.get("alpha_floor"), clusters)
        try:
            knobs.check(effective, clusters)
        except InvalidKnobs as error:
            block.wrong(f"knobs in range ({error})")
    own = _presets(training.get("recommended_ui_defaults"))
    merged = {**knobs.PRESETS, **own, **presets}
    return Defaults(effective, floor, merged, ordered=not {"quality", "balanced", "cost"} & presets.keys())


def _presets(block: Node) -> dict[str, Preset]:
    if not block:
        return {}
    found = {}
    for name, node in block.items():
        preset = Preset(
            node.get("alpha").number(0.0, 1.0),
            _optional(node.get("speed_weight"), 0.0, 1.0),
            _optional(node.get("output_cost_ratio"), 0.0, _RATIO_MAX),
        )
        if preset.alpha + preset.speed_weight > 1.0 + knobs.SUM_SLACK:
            node.wrong("alpha + speed_weight of at most 1")
        found[knobs.ALIASES.get(name, name)] = preset
    return found


def _vector(node: Node, clusters: int) -> Floats:
    values = [item.number(0.0, 1.0) for item in node]
    if len(values) != clusters:
        node.wrong(f"{clusters} values, one for each cluster", f"{len(values)} values")
    return frozen(np.array(values))


def _optional(node: Node, low: float, high: float) -> float:
    return node.number(low, high) if node else 0.0


def _cache(block: Node, clusters: int) -> CacheThresholds:
    if not block:
        return CacheThresholds()
    default, each = block.get("default_threshold"), block.get("per_cluster_threshold")
    per_cluster: dict[int, float] = {}
    if each:
        for name, node in _clusters(each):
            if not (name.isascii() and name.isdigit()) or str(int(name)) != name or int(name) >= clusters:
                each.wrong(f"cluster numbers 0 to {clusters - 1}", name)
            per_cluster[int(name)] = node.number(0.5, 1.0)
    return CacheThresholds(default.number(0.5, 1.0) if default else None, per_cluster)


def _clusters(block: Node) -> list[tuple[str, Node]]:
    """Thresholds per cluster come as an object by cluster or as an array in its order."""
    if isinstance(block.value, list):
        return [(str(number), node) for number, node in enumerate(block) if node]
    return list(block.items())
