"""One good bundle as files, small enough to read."""

from __future__ import annotations

import json
import struct

import pytest
import yaml  # type: ignore[import-untyped]

Files = dict[str, bytes]


@pytest.fixture
def files() -> Files:
    axes = {
        "input_per_1k_usd": 0.00014,
        "output_per_1k_usd": 0.0028,
        "ttft_s": 0.5,
        "tps": 100,
        "verbosity_tokens": None,
    }
    meta = {
        "format_version": 2,
        "version": "v1",
        "embedder": {"model": "e", "embed_dim": 3, "max_tokens": 256},
        "training": {
            "k": 2,
            "top_p": 1,
            "default_routing_knobs": {"alpha": [0.5, 0.9], "alpha_floor": [0.3, 0.4]},
            "recommended_ui_defaults": {"cost_pareto": {"alpha": 0.35, "speed_weight": 0.05, "output_cost_ratio": 0.5}},
        },
        "cache_config": {"default_threshold": 0.9, "per_cluster_threshold": {"1": 0.97}},
    }
    registry = [
        {"model": "b", "provider": "p", "bench_column": "b"},
        {"model": "a", "provider": "q", "bench_column": "a"},
        {"model": "a", "provider": "r", "bench_column": "a"},
    ]
    return {
        "centroids.bin": struct.pack("<4sIII6f", b"CRT1", 1, 2, 3, 1, 0, 0, 0, 1, 0),
        "quality_means.json": json.dumps(
            {"quality_means": {"0": {"a": 0.1, "b": 0.9}, "1": {"a": 1, "b": 2}}}
        ).encode(),
        "model_axes.json": json.dumps({"axes": {"a": axes, "b": axes | {"input_per_1k_usd": None}}}).encode(),
        "model_registry.json": json.dumps({"deployed_models": registry, "other": 1}).encode(),
        "metadata.yaml": yaml.safe_dump(meta).encode(),
    }
