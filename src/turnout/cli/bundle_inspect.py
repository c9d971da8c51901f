"""`turnout bundle inspect`: load a version with every check and show what it holds and what it would choose."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import typer

from turnout.bundles.directory import BundleDirectory
from turnout.cli.bundle_output import load, table
from turnout.core.selection.blend import Blend, shares, winners
from turnout.core.selection.bundle import Bundle
from turnout.core.selection.controls import shown


def run(version: str, directory: Path, *, as_json: bool) -> int:
    """Print a version."""
    document = {"versions": BundleDirectory(directory).versions()} | describe(load(directory, version))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(document), indent=1).decode())
        return 0
    for name in (
        "version",
        "digest",
        "format",
        "embedder",
        "clusters",
        "dim",
        "top_p",
        "linear_head",
        "abstain_similarity",
    ):
        typer.echo(f"{name:<20}{document[name]}")
    typer.echo(f"{'alpha':<20}{document['alpha']}")
    typer.echo(f"{'all versions':<20}{', '.join(document['versions'])}\n")
    head = ("model", "in $/1M", "out $/1M", "ttft s", "tps", "tokens", *document["shares"])
    rows = [
        (
            name,
            *(_blank(row[axis]) for axis in _AXES),
            *(f"{100 * share[name]:.0f} %" for share in document["shares"].values()),
        )
        for name, row in document["models"].items()
    ]
    typer.echo(table(head, rows))
    typer.echo(
        f"\nuntimed: {', '.join(document['untimed']) or 'none'}\nunpriced: {', '.join(document['unpriced']) or 'none'}"
    )
    typer.echo("winner per cluster: " + " ".join(f"{k}:{name}" for k, name in enumerate(document["winners"])))
    return 0


_AXES = ("input_per_1m_usd", "output_per_1m_usd", "ttft_s", "tps", "verbosity_tokens")


def describe(bundle: Bundle) -> dict[str, Any]:
    """Return everything about a bundle as JSON types."""
    blend = Blend(bundle)
    alpha = bundle.defaults.knobs.alpha
    names = ["", *sorted(bundle.defaults.presets)] if bundle.is_v2 else [""]
    rows = {model: _axes(bundle, column) for column, model in enumerate(bundle.models)}
    timed = [model for model, row in rows.items() if row["ttft_s"] is not None and row["tps"]]
    return {
        "version": bundle.version,
        "digest": bundle.digest,
        "format": 2 if bundle.is_v2 else 1,
        "embedder": bundle.embedder_id,
        "clusters": bundle.clusters,
        "dim": bundle.dim,
        "top_p": bundle.top_p,
        "linear_head": bundle.head is not None,
        "abstain_similarity": bundle.abstain_similarity,
        "alpha": shown(float(alpha[0])) if (alpha == alpha[0]).all() else [round(a, 6) for a in alpha.tolist()],
        "models": rows,
        "untimed": [model for model in rows if model not in timed],
        "unpriced": [model for model, row in rows.items() if row["input_per_1m_usd"] is None],
        "winners": winners(blend, blend.weigh()),
        "shares": {name or "default": shares(blend, blend.weigh(name)) for name in names},
    }


def _axes(bundle: Bundle, column: int) -> dict[str, float | None]:
    axes = bundle.axes
    if axes is None:
        return dict.fromkeys(_AXES)
    values = (
        axes.price_in[column] / 1e6,
        axes.price_out[column] / 1e6,
        axes.ttft_s[column],
        axes.tps[column],
        axes.verbosity[column],
    )
    return {name: None if math.isnan(value) else float(value) for name, value in zip(_AXES, values, strict=True)}


def _blank(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
