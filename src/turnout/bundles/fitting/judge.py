"""What a bundle is worth on labels it was not fitted on: the `Blend` that serves requests, asked prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from turnout.bundles.fitting.fit import Embedded
from turnout.bundles.fitting.labels import Labels
from turnout.core.selection.arrays import Bools, Floats, Ints
from turnout.core.selection.blend import Blend
from turnout.core.selection.bundle import Bundle
from turnout.core.selection.controls import ALPHA, Overrides

ALPHAS = tuple(step / 20 for step in range(21))
REACHED = (0.95, 0.99, 1.0)
HARDEST_SHARE = 0.25


class Picks(msgspec.Struct, frozen=True):
    """Per alpha, the picked column of `Labels.models` for each prompt; and who was out of domain."""

    columns: Ints
    """One row per alpha, one column per prompt."""
    out_of_domain: Bools


class Step(msgspec.Struct, frozen=True, gc=False):
    """One value of alpha: mean score and mean cost of what it picks (cost NaN without prices)."""

    alpha: float
    score: float
    cost: float


class GroupRow(msgspec.Struct, frozen=True, gc=False):
    """One group of prompts: what the picks score there beside the best single model of all prompts."""

    group: str
    prompts: int
    score: float
    best_single: float
    error: float
    """Standard error of the difference, paired by prompt."""


def pick(bundle: Bundle, labels: Labels, embedded: Embedded, alphas: Sequence[float] = ALPHAS) -> Picks:
    """Ask the bundle for its first choice at each alpha (the other knobs at 0), exactly as a request would."""
    blend = Blend(bundle)
    weighted = [
        blend.weigh("", Overrides(alpha=alpha, speed_weight=0.0, output_cost_ratio=0.0, params=((ALPHA, "alpha"),)))
        for alpha in alphas
    ]
    column_of = np.array([labels.models.index(model) for model in bundle.models])
    columns = np.empty((len(alphas), len(labels)), dtype=np.intp)
    outside = np.zeros(len(labels), dtype=bool)
    for row in range(len(labels)):
        near = blend.nearest(embedded.vectors[row], float(embedded.lengths[row]))
        for number, one in enumerate(weighted):
            scores = blend.score(one, near)
            columns[number, row] = column_of[scores.order[0]]
            outside[row] = scores.out_of_domain
    return Picks(columns, outside)


def steps(picks: Picks, labels: Labels, costs: Floats, alphas: Sequence[float] = ALPHAS) -> list[Step]:
    """Return mean score and cost per alpha. `costs` is N × M or 1 × M, NaN unknown."""
    rows = np.arange(len(labels))
    table = np.broadcast_to(costs, labels.scores.shape)
    return [
        Step(alpha, float(np.nanmean(labels.scores[rows, chosen])), float(table[rows, chosen].mean()))
        for alpha, chosen in zip(alphas, picks.columns, strict=True)
    ]


def cost_to_reach(walk: Sequence[Step], best_single: float) -> list[tuple[float, float]]:
    """Return (part, least mean cost of a step that scores that part of the best single model); NaN when none does."""
    found = []
    for part in REACHED:
        costs = [step.cost for step in walk if step.score >= part * best_single - 1e-12]
        found.append((part, min(costs) if costs else float("nan")))
    return found


def best_single(labels: Labels) -> int:
    """Return the column of the model with the highest mean; equal ones by name."""
    means = np.nanmean(labels.scores, axis=0)
    return min(range(len(means)), key=lambda column: (-means[column], labels.models[column]))


def by_group(chosen: Ints, labels: Labels, single: int) -> list[GroupRow]:
    """Return one row per group, sorted by how much is lost against the best single model."""
    rows = []
    everything = np.arange(len(labels))
    mine, best = labels.scores[everything, chosen], labels.scores[:, single]
    names = np.array(labels.groups)
    for group in sorted(set(labels.groups)):
        here = names == group
        difference = (mine - best)[here]
        error = float(np.nanstd(difference) / np.sqrt(len(difference)))
        rows.append(
            GroupRow(group, int(here.sum()), float(np.nanmean(mine[here])), float(np.nanmean(best[here])), error)
        )
    return sorted(rows, key=lambda row: (row.score - row.best_single, row.group))


def hardest(labels: Labels) -> Bools:
    """Mark the hardest quarter of the prompts: lowest mean label over the models, ties in favour of earlier rows."""
    means = np.nanmean(labels.scores, axis=1)
    wanted = max(1, round(len(labels) * HARDEST_SHARE))
    mask = np.zeros(len(labels), dtype=bool)
    mask[np.argsort(means, kind="stable")[:wanted]] = True
    return mask
