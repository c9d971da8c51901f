"""Cross-validation without leakage: what is said about a prompt comes from a fit that never saw its text.

Equal prompts are kept in one fold, also when they stand in several groups: a copy in the training part would be a leak.
Whether the linear head is used, and how much of it, is decided inside each training part, not by the part that judges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
import numpy as np

from turnout.bundles.fitting.curves import curve
from turnout.bundles.fitting.fit import TOP, Embedded, Fitted, Plan, fit, normalised
from turnout.bundles.fitting.labels import Labels
from turnout.core.selection.arrays import Bools, Floats, Ints

FOLDS = 5
HeadChoice = Literal["auto", "on", "off"]
_INNER_FOLDS = 3


class Pair(msgspec.Struct, frozen=True, gc=False):
    """Columns of the weak and the strong model."""

    weak: int
    strong: int


class HeadVerdict(msgspec.Struct, frozen=True, gc=False):
    """Whether the linear head earns its place, how much of it, and the APGR it was judged by."""

    scale: float
    apgr_without: float
    apgr_with: float


class Held(msgspec.Struct, frozen=True):
    """What fits that never saw a prompt say about it: quality (N × M), nearest similarity, out of domain."""

    quality: Floats
    similarity: Floats
    out_of_domain: Bools
    heads: tuple[HeadVerdict, ...]
    fits: tuple[Fitted, ...]
    fold_of: Ints

    def gain(self, pair: Pair) -> Floats:
        """Return the predicted gain of the strong model."""
        gain: Floats = self.quality[:, pair.strong] - self.quality[:, pair.weak]
        return gain


def pair_of(labels: Labels, weak: str = "", strong: str = "") -> Pair:
    """Return the pair to compare; by default the best model and the worst one."""
    means = np.nanmean(labels.scores, axis=0)
    strong_at = labels.models.index(strong) if strong else int(np.argmax(means))
    if weak:
        weak_at = labels.models.index(weak)
    else:
        weak_at = min(
            (at for at in range(len(means)) if at != strong_at), key=lambda at: (means[at], labels.models[at])
        )
    return Pair(weak_at, strong_at)


def assign(prompts: tuple[str, ...], folds: int, seed: int, groups: tuple[str, ...] = ()) -> Ints:
    """Return each prompt's fold; equal prompts share one, and with `groups` so do all prompts of a group."""
    together = dict(zip(reversed(prompts), reversed(groups or prompts), strict=True))  # the first of equal ones decides
    first = {one: number for number, one in enumerate(dict.fromkeys(groups or prompts))}
    drawn = np.random.default_rng(seed).permutation(len(first)) % folds
    return np.array([drawn[first[together[prompt]]] for prompt in prompts])


def splits(fold: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Return (training rows, held-out rows) per fold."""
    for number in range(int(fold.max()) + 1):
        out = np.flatnonzero(fold == number)
        rest = np.flatnonzero(fold != number)
        if len(out) and len(rest):
            yield rest, out


def held_out(
    labels: Labels,
    embedded: Embedded,
    fold: Ints,
    plan: Plan,
    head: HeadChoice,
    report: Callable[[int, int], object] = lambda done, total: None,  # noqa: ARG005 - names of the contract
) -> Held:
    """Fit each fold's rest and predict the fold."""
    quality = np.zeros_like(labels.scores)
    similarity, outside = np.zeros(len(labels)), np.zeros(len(labels), dtype=bool)
    fold_of = np.zeros(len(labels), dtype=np.intp)
    verdicts, fits = [], []
    parts = list(splits(fold))
    for done, (rest, out) in enumerate(parts):
        verdict = judge_head(labels.take(rest), embedded.take(rest), plan, head)
        fitted = fit(embedded.take(rest), labels.scores[rest], msgspec.structs.replace(plan, head_scale=verdict.scale))
        quality[out], similarity[out], outside[out] = predict(fitted, embedded.take(out))
        fold_of[out] = done
        verdicts.append(verdict)
        fits.append(fitted)
        report(done + 1, len(parts))
    return Held(quality, similarity, outside, tuple(verdicts), tuple(fits), fold_of)


def predict(fitted: Fitted, embedded: Embedded) -> tuple[Floats, Floats, Bools]:
    """Return expected quality per model, nearest similarity and whether the prompt is out of domain.

    As `Blend` reads a bundle, but before the norms: mean of the top clusters' rows plus the head; outside the domain
    the mean of all rows.
    """
    similarity = np.round(embedded.vectors.astype(np.float64) @ fitted.centroids.T, 9)
    top = min(TOP, similarity.shape[1])
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :top]
    quality = fitted.quality[nearest].mean(axis=1)
    if fitted.head is not None:
        quality = quality + embedded.vectors.astype(np.float64) @ fitted.head[:, :-1].T
        quality = quality + embedded.lengths[:, None] * fitted.head[:, -1]
    closest = similarity.max(axis=1)
    outside = np.zeros(len(closest), dtype=bool)
    if fitted.abstain_similarity is not None:
        outside = closest < fitted.abstain_similarity
        quality[outside] = fitted.quality.mean(axis=0)
    return quality, closest, outside


def judge_head(
    labels: Labels,
    embedded: Embedded,
    plan: Plan,
    choice: HeadChoice,
    report: Callable[[int, int], object] = lambda done, total: None,  # noqa: ARG005 - names of the contract
) -> HeadVerdict:
    """Decide on the linear head by folds inside these labels alone.

    A ridge head is too sure of itself where it was fitted on noise: what it adds to the clusters is scaled by the slope
    that held-out residuals have on it (at most 1), so that its sign is worth following. It is used when the scaled head
    raises the APGR of best and worst model (`auto`), always (`on`) or never (`off`).
    """
    if choice == "off" or len(set(labels.prompts)) < 2 * _INNER_FOLDS:
        return HeadVerdict(0.0, float("nan"), float("nan"))
    fold = assign(labels.prompts, _INNER_FOLDS, plan.seed)
    base, added = np.zeros_like(labels.scores), np.zeros_like(labels.scores)
    whole = msgspec.structs.replace(plan, head_scale=1.0, abstain=None)
    for rest, out in splits(fold):
        fitted = fit(embedded.take(rest), labels.scores[rest], whole)
        base[out], _, _ = predict(msgspec.structs.replace(fitted, head=None), embedded.take(out))
        together, _, _ = predict(fitted, embedded.take(out))
        added[out] = together - base[out]
        report(int(fold[out[0]]) + 1, _INNER_FOLDS)
    targets = normalised(labels.scores, plan.scoring)
    known = ~np.isnan(targets)
    power = float((added[known] ** 2).sum())
    slope = float((added[known] * (targets - base)[known]).sum()) / power if power else 0.0
    scale = min(1.0, max(0.0, slope))
    pair = pair_of(labels)
    rows = known[:, pair.weak] & known[:, pair.strong]
    weak, strong = labels.scores[rows, pair.weak], labels.scores[rows, pair.strong]

    def apgr(table: Floats) -> float:
        return curve(table[rows, pair.strong] - table[rows, pair.weak], weak, strong).apgr

    without, with_head = apgr(base), apgr(base + scale * added)
    return HeadVerdict(scale if choice == "on" or with_head > without else 0.0, without, with_head)
