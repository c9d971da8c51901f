"""A router that chooses between a dear and a cheap model by a bundle of two topics, and keys that may ask for more."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tests.support.engine import Engine
from tests.support.router import Router

from turnout.bundles.directory import BundleDirectory
from turnout.bundles.fitting.build import Price, bundle_files
from turnout.bundles.fitting.fit import Fitted
from turnout.bundles.fitting.labels import Labels
from turnout.bundles.writing import write
from turnout.core.selection.embedder import Hashgram

MATHS, POEMS = "prove the integral theorem", "write a poem with rhymes"
PRICES = {"big": Price(10, 30), "small": Price(0.5, 1)}


def key(name: str, tenant: str, *permissions: str) -> dict[str, object]:
    digest = "sha256:" + hashlib.sha256(f"key-{name}".encode()).hexdigest()
    return {"name": name, "tenant": tenant, "digest": digest, "permissions": list(permissions)}


KEYS = [
    key("plain", "t1"),
    key("cached", "t1", "response_cache=semantic"),
    key("rival", "t2", "response_cache=semantic"),
    key("expert", "t1", "bundle_version", "preview", "response_cache=exact"),
    {**key("narrow", "t1"), "models": ["small"]},
]


def bundle(root: Path, version: str, quality: list[list[float]]) -> None:
    """Two clusters, one per topic; `big` is dear, `small` is cheap."""
    embedder = Hashgram()
    fitted = Fitted(np.array([embedder.embed(text) for text in (MATHS, POEMS)], dtype=np.float64), np.array(quality))
    labels = Labels((MATHS,), ("",), ("big", "small"), np.array([[1.0, 0.0]]))
    about = {"top_p": 1, "default_routing_knobs": {"alpha": [0.7, 0.7]}}
    files = bundle_files(version, labels, fitted, embedder, prices=PRICES, provider="p", about=about)
    write(BundleDirectory(root), version, files)


class House:
    """A router that chooses between a dear and a cheap model on one engine."""

    def __init__(self, start: Callable[..., Router], engine: Engine, root: Path, **more: Any) -> None:
        self.engine, self.root = engine, root
        endpoint = {"name": "e1", "url": engine.url, "models": ["big", "small"], "context_max": 4000}
        self.router = start(
            endpoint=[endpoint], key=KEYS, selection={"bundle_dir": str(root), "build_versions": ["all"]}, **more
        )

    def ask(
        self,
        content: object = MATHS,
        *lines: bytes,
        name: str = "plain",
        path: bytes = b"/v1/chat/completions",
        **body: Any,
    ) -> Any:
        document = {"model": "auto", "messages": [{"role": "user", "content": content}], **body}
        return self.router.ask(document, *lines, key=f"key-{name}", path=path)

    def fact(self, index: int) -> Any:
        """The row of one of the requests, by the order in which they ended."""
        return self.router.records.fact(index)
