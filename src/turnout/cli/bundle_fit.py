"""`turnout bundle fit`: labels to a new version, with a progress display, and the words that say what was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
import typer

from turnout.bundles import tables
from turnout.bundles.directory import BundleDirectory
from turnout.bundles.fitting.build import bundle_files
from turnout.bundles.fitting.fit import Plan, Scoring, embed_all, fit
from turnout.bundles.fitting.folds import HeadChoice, HeadVerdict, judge_head
from turnout.bundles.fitting.labels import LabelError, read
from turnout.bundles.reading import digest_of, parse
from turnout.bundles.writing import Document, promote, write
from turnout.cli.bundle_output import MAX_PROMPT_BYTES, embedder_in, prices_of, progress
from turnout.core.selection.blend import Blend
from turnout.core.selection.clusters import at_centroid

SCORINGS, HEADS = ("zscore", "none", "minmax"), ("auto", "on", "off")


def plan_of(clusters: int | None, scoring: str, head: str, abstain: float) -> tuple[Plan, HeadChoice]:
    """Return the checked options.

    Raises:
        LabelError: an unknown scoring or head.

    """
    for name, value, known in (("--scores", scoring, SCORINGS), ("--head", head, HEADS)):
        if value not in known:
            raise LabelError(f"{name}: expected one of {', '.join(known)}, got {value!r:.64}")
    if scoring == "minmax":
        typer.echo("warning: minmax lets one lucky prompt count as much as a large gap; zscore ranks better", err=True)
    plan = Plan(clusters=clusters, scoring=cast("Scoring", scoring), abstain=abstain or None)
    return plan, cast("HeadChoice", head)


def run(
    labels: Path,
    version: str,
    directory: Path,
    *,
    wide: bool,
    clusters: int | None,
    scoring: str,
    head: str,
    abstain: float,
    prices: Sequence[str],
    provider: str,
    promote_it: bool,
    write_v1: bool,
    encoder: Path | None = None,
) -> int:
    """Fit, write and say what was made."""
    plan, choice = plan_of(clusters, scoring, head, abstain)
    known = read(labels, wide=wide)
    book = prices_of(prices)
    embedder = embedder_in(encoder)
    with progress() as start:
        embedded = embed_all(known.prompts, embedder, MAX_PROMPT_BYTES, start("embedding"))
        verdict = judge_head(known, embedded, plan, choice, start("linear head, folds"))
        fitted = fit(
            embedded, known.scores, msgspec.structs.replace(plan, head_scale=verdict.scale), start("clustering, rounds")
        )
    about = {
        "alpha": 0.53,
        "seed": plan.seed,
        "n_prompts": len(known),
        "score_normalization": scoring,
        "head": head_words(verdict),
    }
    files = bundle_files(version, known, fitted, embedder, prices=book, provider=provider, about=about)
    if write_v1:
        files[tables.RANKINGS] = _rankings(version, files)
    path = write(BundleDirectory(directory), version, files)
    if promote_it:
        promote(BundleDirectory(directory), version)
    typer.echo(f"wrote {path}  digest {digest_of(files)[:16]}")
    typer.echo(f"{len(known)} prompts, {len(known.models)} models, {len(fitted.centroids)} clusters")
    typer.echo(f"linear head: {head_words(verdict)}")
    if fitted.abstain_similarity is not None:
        typer.echo(f"out of domain below similarity {fitted.abstain_similarity:.4f}")
    if promote_it:
        typer.echo(f"latest is {version}")
    return 0


def head_words(verdict: HeadVerdict) -> str:
    """Say what was decided about the linear head, and by what."""
    if math.isnan(verdict.apgr_without):
        return "not used"
    measured = f"cross-validated APGR {verdict.apgr_without:.4f} without, {verdict.apgr_with:.4f} with"
    return f"used at scale {verdict.scale:.3f} ({measured})" if verdict.scale else f"not used ({measured})"


def _rankings(version: str, files: dict[str, bytes]) -> bytes:
    """Bake the default knobs into per-cluster rankings, for readers of the first format."""
    import numpy as np

    blend = Blend(parse(version, files))
    weighted = blend.weigh()
    rows: dict[str, Document] = {}
    for cluster in range(blend.bundle.clusters):
        scores = blend.score(weighted, at_centroid(cluster))
        rows[str(cluster)] = dict(zip(blend.bundle.models, np.round(scores.score, 9).tolist(), strict=True))
    return msgspec.json.format(msgspec.json.encode({"rankings": rows}), indent=1) + b"\n"
