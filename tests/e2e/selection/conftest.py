"""A bundle of two topics for the tests of this folder: `big` is good at proofs and dear, `small` is cheap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.support.engine import Engine
from tests.support.router import Router
from tests.support.selecting import House, bundle

from turnout.bundles.directory import BundleDirectory
from turnout.bundles.fitting.build import Price, bundle_files
from turnout.bundles.fitting.fit import Fitted
from turnout.bundles.fitting.labels import Labels
from turnout.bundles.writing import promote, write
from turnout.core.selection.embedder import Hashgram

TOPICS = ("prove the integral theorem", "write a poem with rhymes")


@pytest.fixture
def two_topics(tmp_path: Path) -> Callable[..., Path]:
    """Write version v1, in force, and return its folder."""

    def made(dear: float = 10.0, cheap: float = 0.5) -> Path:
        embedder = Hashgram()
        centroids = np.array([embedder.embed(text) for text in TOPICS], dtype=np.float64)
        fitted = Fitted(centroids, np.array([[0.9, 0.1], [0.5, 0.5]]))
        labels = Labels(TOPICS[:1], ("",), ("big", "small"), np.array([[1.0, 0.0]]))
        about = {"top_p": 1, "default_routing_knobs": {"alpha": [0.7, 0.7]}}
        prices = {"big": Price(dear, 3 * dear), "small": Price(cheap, 2 * cheap)}
        files = bundle_files("v1", labels, fitted, embedder, prices=prices, provider="p", about=about)
        write(BundleDirectory(tmp_path), "v1", files)
        promote(BundleDirectory(tmp_path), "v1")
        return tmp_path

    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    bundle(tmp_path, "v1", [[0.9, 0.1], [0.5, 0.5]])
    bundle(tmp_path, "v2", [[0.1, 0.9], [0.1, 0.9]])
    promote(BundleDirectory(tmp_path), "v1")
    return tmp_path


@pytest.fixture
def house(router: Callable[..., Router], script_engine: Callable[..., Engine], root: Path) -> House:
    return House(router, script_engine(), root)


@pytest.fixture
def caching(router: Callable[..., Router], script_engine: Callable[..., Engine], root: Path) -> House:
    return House(router, script_engine(), root, response_cache={"enabled": True, "guard": "standard", "threshold": 0.9})
