"""A version's files to one checked `Bundle`: every rule of selection §2 runs here, before any request can use it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import msgspec

from turnout.bundles import binary, metadata, tables
from turnout.bundles.documents import Node, read_json, read_yaml
from turnout.bundles.fault import BundleError
from turnout.bundles.metadata import Metadata
from turnout.core.selection.arrays import Floats, frozen
from turnout.core.selection.bundle import Axes, Bundle
from turnout.core.selection.embedder import Embedder
from turnout.core.selection.knobs import Preset

FILES = (
    binary.CENTROIDS,
    tables.QUALITY,
    tables.AXES,
    tables.REGISTRY,
    metadata.FILE,
    tables.RANKINGS,
    tables.FEATURES,
    binary.HEAD,
)
BYTES_MAX = binary.BYTES_MAX


class Settings(msgspec.Struct, frozen=True):
    """What the configuration adds to a bundle.

    `routable` are the models with a configured route, None: all of the registry's. `embedder` must be the bundle's own;
    None leaves that check to whoever embeds.
    """

    routable: Collection[str] | None = None
    top_p: int | None = None
    presets: Mapping[str, Preset] = {}
    embedder: Embedder | None = None


def digest_of(files: Mapping[str, bytes]) -> str:
    """Return the hex digest that names a version's content."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return total.hexdigest()


def parse(version: str, files: Mapping[str, bytes], settings: Settings = Settings()) -> Bundle:  # noqa: B008 - frozen
    """Check a version's files and return the bundle.

    Raises:
        BundleError: names version, file, field, the value seen and the value wanted.

    """
    centroids = binary.read_centroids(version, _required(version, files, binary.CENTROIDS))
    clusters, dim = centroids.shape
    registry = tables.read_registry(_document(version, files, tables.REGISTRY))
    models = _deployed(version, registry, settings.routable)
    v2 = tables.QUALITY in files or tables.FEATURES in files
    meta = _metadata(version, files, clusters, dim, settings, v2=v2)
    _check_embedder(version, meta, dim, settings.embedder)
    quality, axes = _v2_tables(version, files, clusters, models) if v2 else (None, None)
    rankings = None
    if tables.RANKINGS in files or not v2:
        rankings = tables.read_rows(_document(version, files, tables.RANKINGS).get("rankings"), clusters, models)
    return Bundle(
        version=version,
        digest=digest_of(files),
        embedder_id=meta.embedder_id,
        centroids=centroids,
        models=models,
        providers=_providers(registry, models),
        quality=quality,
        rankings=rankings,
        axes=axes,
        defaults=meta.defaults,
        top_p=meta.top_p,
        head=_head(version, files, registry, models, dim),
        abstain_similarity=meta.abstain_similarity,
        cache=meta.cache,
    )


def _required(version: str, files: Mapping[str, bytes], name: str) -> bytes:
    raw = files.get(name)
    if raw is None:
        raise BundleError(version, name, "", "no such file", "the file")
    return raw


def _document(version: str, files: Mapping[str, bytes], name: str) -> Node:
    return read_json(version, name, _required(version, files, name))


def _metadata(
    version: str, files: Mapping[str, bytes], clusters: int, dim: int, settings: Settings, *, v2: bool
) -> Metadata:
    if not v2 and metadata.FILE not in files:
        return metadata.without(version, clusters, settings.top_p)
    document = read_yaml(version, metadata.FILE, _required(version, files, metadata.FILE))
    return metadata.read_metadata(document, clusters, dim, v2=v2, presets=settings.presets, top_p=settings.top_p)


def _deployed(version: str, registry: list[tables.Registered], routable: Collection[str] | None) -> tuple[str, ...]:
    models = {line.model for line in registry}
    kept = models if routable is None else models & set(routable)
    if not kept:
        providers = ", ".join(sorted({line.provider for line in registry}))
        raise BundleError(
            version, tables.REGISTRY, "deployed_models", "none with a route", f"a route to one of {providers}"
        )
    return tuple(sorted(kept, key=str.encode))


def _providers(registry: list[tables.Registered], models: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {model: [] for model in models}
    for line in registry:
        if line.model in found and line.provider not in found[line.model]:
            found[line.model].append(line.provider)
    return {model: tuple(providers) for model, providers in found.items()}


def _v2_tables(version: str, files: Mapping[str, bytes], clusters: int, models: tuple[str, ...]) -> tuple[Floats, Axes]:
    if tables.FEATURES in files:
        return tables.read_features(_document(version, files, tables.FEATURES), clusters, models)
    quality = tables.read_rows(_document(version, files, tables.QUALITY).get("quality_means"), clusters, models)
    return quality, tables.read_axes(_document(version, files, tables.AXES).get("axes"), models)


def _head(
    version: str, files: Mapping[str, bytes], registry: list[tables.Registered], models: tuple[str, ...], dim: int
) -> Floats | None:
    if binary.HEAD not in files:
        return None
    listed = sorted({line.model for line in registry}, key=str.encode)
    table = binary.read_head(version, files[binary.HEAD], len(listed), dim)
    return frozen(table[[listed.index(model) for model in models]])


def _check_embedder(version: str, meta: Metadata, dim: int, embedder: Embedder | None) -> None:
    if embedder is None:
        return
    if embedder.id != meta.embedder_id:
        raise BundleError(version, metadata.FILE, "embedder.model", meta.embedder_id, f"{embedder.id}, the embedder")
    if embedder.dim != dim:
        raise BundleError(version, binary.CENTROIDS, "dim", dim, f"{embedder.dim}, the embedder's")
