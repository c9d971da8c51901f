"""`turnout bundle eval`: figures of a fit or a version on labels it never saw, always beside length and the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import typer

from turnout.bundles.fitting import curves, folds, gate, judge
from turnout.bundles.fitting.build import in_memory
from turnout.bundles.fitting.fit import Embedded, Fitted, Plan, embed_all, fit
from turnout.bundles.fitting.folds import HeadChoice, Pair
from turnout.bundles.fitting.labels import LabelError, Labels, read
from turnout.bundles.fitting.plot import Line, as_svg
from turnout.bundles.fitting.plot import plan as plan_of_plot
from turnout.bundles.fitting.raster import as_png
from turnout.cli.bundle_eval_report import Judged, Row, document, print_report
from turnout.cli.bundle_fit import head_words, plan_of
from turnout.cli.bundle_output import MAX_PROMPT_BYTES, Report, embedder_in, embedder_of, load, prices_of, progress
from turnout.core.selection.arrays import Floats, Ints
from turnout.core.selection.bundle import Bundle
from turnout.core.selection.embedder import Embedder

_TOKENS_PER_BYTE = 0.25


def run(
    labels: Path,
    *,
    wide: bool,
    clusters: int | None,
    scoring: str,
    head: str,
    abstain: float,
    prices: Sequence[str],
    seeds: int,
    test: Path | None,
    version: str,
    against: str,
    directory: Path,
    weak: str,
    strong: str,
    plot: Path | None,
    as_json: bool,
    by_group: bool = False,
    encoders: Sequence[Path] = (),
) -> int:
    """Judge and print; 1 when the gate against another version fails."""
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise LabelError(f"--plot: expected a file name that ends in .svg or .png, got {plot.name!r}")
    if by_group and (version or test is not None):
        raise LabelError("--by-group: expected neither --version nor --test, which fit no folds")
    plan, choice = plan_of(clusters, scoring, head, abstain)
    known = read(labels, wide=wide)
    book = prices_of(prices)
    if version:
        judged = _version(known, load(directory, version), weak, strong, encoders)
    elif test is not None:
        embedder = embedder_in(next(iter(encoders), None))
        judged = _held_out_file(known, read(test, wide=wide), embedder, plan, choice, book, weak, strong)
    else:
        embedder = embedder_in(next(iter(encoders), None))
        judged = _folds(known, embedder, plan, choice, book, seeds, weak, strong, by_group=by_group)
    gated = None
    if against:
        old = load(directory, against)
        judged_on = judged.labels.only(old.models)
        picks = judge.pick(old, judged_on, _embedded(judged_on, old, encoders), (1.0,))
        columns = np.array([judged.labels.models.index(model) for model in old.models])[picks.columns[0]]
        gated = gate.against(judged.labels, judged.picks.columns[-1], columns)
    if plot is not None:
        _draw(judged, plot)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(document(judged, gated)), indent=1).decode())
    else:
        print_report(judged, gated)
    return 0 if gated is None or gated.passed else 1


def _folds(
    labels: Labels,
    embedder: Embedder,
    plan: Plan,
    choice: HeadChoice,
    book: dict[str, Any],
    seeds: int,
    weak: str,
    strong: str,
    *,
    by_group: bool,
) -> Judged:
    """Cross-validate; figures are means over the seeds of the folds, intervals and tables are those of seed 0."""
    pair = folds.pair_of(labels, weak, strong)
    if by_group and len(set(labels.groups)) < 2:  # noqa: PLR2004 - one to fit on, one to judge
        raise LabelError(f"--by-group: expected labels with two groups or more, got {len(set(labels.groups))}")
    kept: folds.Held | None = None
    gains, verdicts, first = [], [], []
    with progress() as start:
        embedded = embed_all(labels.prompts, embedder, MAX_PROMPT_BYTES, start("embedding"))
        for seed in range(seeds):
            fold = folds.assign(labels.prompts, folds.FOLDS, seed, labels.groups if by_group else ())
            held = folds.held_out(labels, embedded, fold, plan, choice, start(f"folds, seed {seed}"))
            kept = kept or held
            gains.append(held.gain(pair))
            first.append(_score(labels, _picked(labels, embedded, embedder, held, book, (1.0,)).columns[0]))
            verdicts += [head_words(verdict) for verdict in held.heads]
        assert kept is not None
        picks = _picked(labels, embedded, embedder, kept, book, judge.ALPHAS, start("asking the blend"))
    costs = _costs(labels, in_memory(labels, kept.fits[0], embedder, book))
    how = f"{folds.FOLDS} folds{' of whole groups' if by_group else ''}, mean of {seeds} seed{'s' if seeds > 1 else ''}"
    judged = _judged(labels, pair, gains, picks, costs, how, verdicts)
    return msgspec.structs.replace(judged, first_choice=tuple(first))


def _picked(
    labels: Labels,
    embedded: Embedded,
    embedder: Embedder,
    held: folds.Held,
    book: dict[str, Any],
    alphas: Sequence[float],
    report: Report = lambda done, total: None,  # noqa: ARG005 - names of the contract
) -> judge.Picks:
    """Ask the blend of each fold's fit about the prompts it never saw."""
    columns = np.empty((len(alphas), len(labels)), dtype=np.intp)
    outside = np.zeros(len(labels), dtype=bool)
    for number, fitted in enumerate(held.fits):
        rows = np.flatnonzero(held.fold_of == number)
        picks = judge.pick(in_memory(labels, fitted, embedder, book), labels.take(rows), embedded.take(rows), alphas)
        columns[:, rows], outside[rows] = picks.columns, picks.out_of_domain
        report(number + 1, len(held.fits))
    return judge.Picks(columns, outside)


def _score(labels: Labels, columns: Ints) -> float:
    return float(np.nanmean(labels.scores[np.arange(len(labels)), columns]))


def _held_out_file(
    labels: Labels,
    test: Labels,
    embedder: Embedder,
    plan: Plan,
    choice: HeadChoice,
    book: dict[str, Any],
    weak: str,
    strong: str,
) -> Judged:
    """Fit on one file and judge on another: out of domain when they have nothing in common."""
    judged_on = test.only(labels.models)
    seen = set(labels.prompts)
    judged_on = judged_on.take([row for row, prompt in enumerate(judged_on.prompts) if prompt not in seen])
    with progress() as start:
        embedded = embed_all(labels.prompts, embedder, MAX_PROMPT_BYTES, start("embedding"))
        verdict = folds.judge_head(labels, embedded, plan, choice)
        fitted = fit(
            embedded, labels.scores, msgspec.structs.replace(plan, head_scale=verdict.scale), start("clustering")
        )
        there = embed_all(judged_on.prompts, embedder, MAX_PROMPT_BYTES, start("embedding the test"))
    bundle = in_memory(labels, fitted, embedder, book)
    quality, _, _ = folds.predict(fitted, there)
    pair = folds.pair_of(judged_on, weak, strong)
    gain = quality[:, pair.strong] - quality[:, pair.weak]
    picks = judge.pick(bundle, judged_on, there)
    return _judged(
        judged_on, pair, [gain], picks, _costs(judged_on, bundle), "fitted on other labels", [head_words(verdict)]
    )


def _version(labels: Labels, bundle: Bundle, weak: str, strong: str, encoders: Sequence[Path]) -> Judged:
    """Judge a version as it stands."""
    judged_on = labels.only(bundle.models)
    embedded = _embedded(judged_on, bundle, encoders)
    pair = folds.pair_of(judged_on, weak, strong)
    assert bundle.quality is not None
    fitted = Fitted(bundle.centroids, bundle.quality, bundle.head, bundle.abstain_similarity)
    quality, _, _ = folds.predict(fitted, embedded)
    picks = judge.pick(bundle, judged_on, embedded)
    gain = quality[:, pair.strong] - quality[:, pair.weak]
    return _judged(judged_on, pair, [gain], picks, _costs(judged_on, bundle), f"version {bundle.version}", [])


def _judged(
    labels: Labels, pair: Pair, gains: list[Floats], picks: judge.Picks, costs: Floats, how: str, heads: list[str]
) -> Judged:
    complete = ~np.isnan(labels.scores[:, [pair.weak, pair.strong]]).any(axis=1)
    weak, strong = labels.scores[complete, pair.weak], labels.scores[complete, pair.strong]
    length = np.array([float(len(prompt.encode("utf-8", "surrogatepass"))) for prompt in labels.prompts])[complete]
    readings = [curves.read_off(gain[complete], weak, strong, seed=seed) for seed, gain in enumerate(gains)]
    lines = {
        "random": np.zeros(len(weak)),
        "length": length,
        "bundle": gains[0][complete],
        "oracle": curves.oracle_gain(weak, strong),
    }
    rows = [Row(name, curves.read_off(gain, weak, strong, seed=0)) for name, gain in lines.items() if name != "bundle"]
    rows.insert(2, Row("bundle", _mean(readings)))
    return Judged(
        labels, pair, how, heads, rows, {name: curves.curve(gain, weak, strong) for name, gain in lines.items()},
        curves.calibration(gains[0][complete], weak, strong), picks, judge.steps(picks, labels, costs),
        judge.best_single(labels), costs,
    )  # fmt: skip


def _mean(readings: list[curves.Reading]) -> curves.Reading:
    """Average figures and their intervals over seeds: the folds change, the prompts do not."""

    def mean(pick: str) -> curves.Interval:
        found = [getattr(reading, pick) for reading in readings]
        return curves.Interval(
            *[float(np.mean([getattr(one, end) for one in found])) for end in ("value", "low", "high")]
        )

    return curves.Reading(mean("apgr"), mean("cpt50"), mean("cpt80"))


def _costs(labels: Labels, bundle: Bundle) -> Floats:
    """Return USD per prompt and model: labelled costs, else the bundle's prices of the prompt and a usual answer."""
    if labels.costs is not None:
        return labels.costs
    axes = bundle.axes
    if axes is None:
        return np.full((1, len(labels.models)), np.nan)
    columns = [bundle.models.index(model) for model in labels.models]
    tokens = np.array([len(prompt.encode("utf-8", "surrogatepass")) for prompt in labels.prompts]) * _TOKENS_PER_BYTE
    out = np.nan_to_num(axes.verbosity[columns]) * np.nan_to_num(axes.price_out[columns])
    costs: Floats = (tokens[:, None] * axes.price_in[columns] + out) / 1e12
    return costs


def _embedded(labels: Labels, bundle: Bundle, encoders: Sequence[Path]) -> Embedded:
    embedder = embedder_of(bundle.embedder_id, encoders)
    with progress() as start:
        return embed_all(labels.prompts, embedder, MAX_PROMPT_BYTES, start("embedding"))


def _draw(judged: Judged, to: Path) -> None:
    weak, strong = judged.labels.models[judged.pair.weak], judged.labels.models[judged.pair.strong]
    lines = [Line(name, found.share, found.score) for name, found in judged.curves.items()]
    title = f"{weak} to {strong}, {len(judged.labels)} prompts, {judged.how}"
    picture = plan_of_plot(title, f"calls to {strong}", "mean score", lines)
    try:
        to.write_bytes(as_png(picture) if to.suffix == ".png" else as_svg(picture))
    except OSError as error:
        raise LabelError(f"--plot: expected a file that can be written, got {error.strerror}: {to}") from None
