"""`turnout bundle diff`: the release gate of two versions, or of one version's baked-in rankings against its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import typer

from turnout.bundles import tables
from turnout.bundles.directory import BundleDirectory
from turnout.bundles.fitting.fit import embed_all
from turnout.bundles.fitting.gate import as_csv, difference, read_fixture
from turnout.bundles.fitting.labels import LabelError
from turnout.bundles.reading import Settings, parse
from turnout.cli.bundle_output import MAX_PROMPT_BYTES, embedder_of, load, progress
from turnout.core.selection.blend import Blend
from turnout.core.selection.bundle import Bundle


def run(
    old: str,
    new: str,
    fixture: Path,
    sha256: str | None,
    out: Path | None,
    directory: Path,
    encoders: Sequence[Path] = (),
) -> int:
    """Compare and return 1 when the gate fails."""
    try:
        prompts = read_fixture(fixture.read_bytes(), sha256)
    except OSError as error:
        raise LabelError(f"{fixture}: expected a readable file, got {error.strerror}") from None
    before = load(directory, old) if new else _baked_in(directory, old)
    after = load(directory, new or old)
    texts = tuple(prompt.text for prompt in prompts)
    with progress() as start:
        embedded_before = embed_all(
            texts, embedder_of(before.embedder_id, encoders), MAX_PROMPT_BYTES, start(f"embedding for {old}")
        )
        embedded_after = embedded_before
        if after.embedder_id != before.embedder_id:
            embedded_after = embed_all(
                texts, embedder_of(after.embedder_id, encoders), MAX_PROMPT_BYTES, start(f"embedding for {new}")
            )
    found = difference(Blend(before), Blend(after), prompts, embedded_before, embedded_after)
    if out is not None:
        out.write_text(as_csv(found.divergences), encoding="utf-8")
    gap = max((abs(row.score_a - row.score_b) for row in found.divergences), default=0.0)
    typer.echo(
        f"{found.prompts} prompts, top-1 agreement {found.agreement:.4f}, largest score gap of a divergence {gap:.6f}"
    )
    typer.echo(
        "gate passed" if found.passed else "gate failed: expected agreement of at least 0.99 and gaps below 0.001"
    )
    return 0 if found.passed else 1


def _baked_in(directory: Path, version: str) -> Bundle:
    """Return a version as a reader of the first format sees it."""
    name, files = BundleDirectory(directory).read(version)
    if tables.RANKINGS not in files:
        raise LabelError(f"{version}: expected {tables.RANKINGS} (fit --write-v1) or a second version, got neither")
    bundle = parse(name, files, Settings())
    return msgspec.structs.replace(bundle, quality=None, axes=None, head=None)
