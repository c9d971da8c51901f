"""What `turnout bundle eval` says: one document, and the same as tables. No figure stands without length beside it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import typer

from turnout.bundles.fitting import judge
from turnout.bundles.fitting.curves import Curve, Interval, Reading
from turnout.bundles.fitting.folds import Pair
from turnout.bundles.fitting.gate import Against
from turnout.bundles.fitting.labels import Labels
from turnout.cli.bundle_output import percent, table
from turnout.core.selection.arrays import Floats

_ALPHAS_SHOWN = 5
_GROUPS_SHOWN = 8
_NOISE = 1.96


class Row(msgspec.Struct, frozen=True):
    """One order of prompts and its figures."""

    name: str
    reading: Reading


class Judged(msgspec.Struct, frozen=True):
    """Everything that was found out."""

    labels: Labels
    pair: Pair
    how: str
    heads: list[str]
    rows: list[Row]
    curves: dict[str, Curve]
    calibration: list[tuple[float, float, int]]
    picks: judge.Picks
    walk: list[judge.Step]
    single: int
    costs: Floats
    first_choice: tuple[float, ...] = ()
    """Score of the first choice at alpha 1, by seed of the folds."""


def document(judged: Judged, gated: Against | None) -> dict[str, Any]:
    """Return the findings as JSON types."""
    labels = judged.labels
    best = float(np.nanmean(labels.scores[:, judged.single]))
    return {
        "prompts": len(labels),
        "how": judged.how,
        "weak": labels.models[judged.pair.weak],
        "strong": labels.models[judged.pair.strong],
        "linear_head": judged.heads,
        "figures": {row.name: msgspec.to_builtins(row.reading) for row in judged.rows},
        "best_single": {"model": labels.models[judged.single], "score": best},
        "at_full_quality": {
            "score": judged.walk[-1].score,
            "out_of_domain": float(judged.picks.out_of_domain.mean()),
            "points_by_seed": [100 * (score - best) for score in judged.first_choice],
        },
        "alphas": [_finite(msgspec.to_builtins(step)) for step in judged.walk],
        "cost_to_reach": [
            _finite({"part": part, "cost": cost}) for part, cost in judge.cost_to_reach(judged.walk, best)
        ],
        "calibration": [{"predicted": p, "came_true": t, "prompts": n} for p, t, n in judged.calibration],
        "groups": [msgspec.to_builtins(row) for row in judge.by_group(judged.picks.columns[-1], labels, judged.single)],
        "against": None if gated is None else msgspec.to_builtins(gated) | {"passed": gated.passed},
    }


def print_report(judged: Judged, gated: Against | None) -> None:
    """Print the findings."""
    labels = judged.labels
    weak, strong = labels.models[judged.pair.weak], labels.models[judged.pair.strong]
    typer.echo(f"{len(labels)} prompts, {judged.how}; weak {weak}, strong {strong}\n")
    rows = [
        (row.name, _cell(row.reading.apgr), _share(row.reading.cpt50), _share(row.reading.cpt80)) for row in judged.rows
    ]
    typer.echo(table(("order of prompts", "APGR [95 %]", "CPT50 [95 %]", "CPT80 [95 %]"), rows))
    if judged.heads:
        counted = Counter("used" if words.startswith("used") else "not used" for words in judged.heads)
        typer.echo(
            "\nlinear head: "
            + ", ".join(f"{name} in {count}" for name, count in counted.most_common())
            + f" of {len(judged.heads)} fits; first: {judged.heads[0]}"
        )
    _print_picks(judged)
    _print_groups(judged)
    if gated is not None:
        typer.echo(
            f"\nagainst: mean {gated.mean_new:.4f} (old {gated.mean_old:.4f}), "
            f"hardest quarter {gated.hard_new:.4f} (old {gated.hard_old:.4f}): "
            + ("gate passed" if gated.passed else "gate failed")
        )


def _print_picks(judged: Judged) -> None:
    labels = judged.labels
    best = float(np.nanmean(labels.scores[:, judged.single]))
    typer.echo(f"\nbest single model {labels.models[judged.single]}: {best:.4f}")
    at_full = judged.walk[-1].score
    typer.echo(
        f"bundle's first choice at alpha 1: {at_full:.4f} ({100 * (at_full - best):+.2f} points), "
        f"{percent(float(judged.picks.out_of_domain.mean()))} of prompts out of domain"
    )
    if len(judged.first_choice) > 1:
        points = [100 * (score - best) for score in judged.first_choice]
        typer.echo(f"over {len(points)} seeds: mean {np.mean(points):+.2f} points, worst {min(points):+.2f}")
    typer.echo()
    typer.echo(
        table(
            ("alpha", "score", "cost per 1k prompts"),
            [(f"{s.alpha:.2f}", s.score, _money(s.cost)) for s in judged.walk[::_ALPHAS_SHOWN]],
        )
    )
    single_cost = float(np.broadcast_to(judged.costs, labels.scores.shape)[:, judged.single].mean())
    for part, cost in judge.cost_to_reach(judged.walk, best):
        typer.echo(f"cost to reach {100 * part:.0f} % of it: {_money(cost)}, that model alone {_money(single_cost)}")
    rows = [(f"{p:+.3f}", f"{t:+.3f}", n) for p, t, n in judged.calibration]
    typer.echo("\n" + table(("predicted gain", "came true", "prompts"), rows))


def _print_groups(judged: Judged) -> None:
    rows = judge.by_group(judged.picks.columns[-1], judged.labels, judged.single)
    if len(rows) < 2:  # noqa: PLR2004 - one group is all of them
        return
    lost = [row for row in rows if row.score < row.best_single]
    sure = [row for row in lost if row.best_single - row.score > _NOISE * row.error]
    typer.echo(
        f"\n{len(lost)} of {len(rows)} groups score below the best single model, {len(sure)} by more than their noise:"
    )
    shown = [
        (
            r.group,
            r.prompts,
            r.score,
            r.best_single,
            f"{100 * (r.score - r.best_single):+.1f} ± {100 * _NOISE * r.error:.1f}",
        )
        for r in rows[:_GROUPS_SHOWN]
    ]
    typer.echo(table(("worst groups", "prompts", "score", "best single", "points"), shown))


def _cell(found: Interval) -> str:
    return f"{found.value:.4f} [{found.low:.3f}, {found.high:.3f}]"


def _share(found: Interval) -> str:
    return f"{percent(found.value)} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _money(cost: float) -> str:
    return "unknown" if np.isnan(cost) else f"${1000 * cost:.4f}"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
