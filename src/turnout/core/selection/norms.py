"""The norms of the blend (selection §5): quality by rows of clusters, cost and speed by the axes and the knobs.

All run over deployed models, so a filter changes none of them.
"""

from __future__ import annotations

import numpy as np

from turnout.core.selection.arrays import Bools, Floats, Ints
from turnout.core.selection.bundle import Axes
from turnout.core.selection.knobs import Knobs

_LEAST_SPAN = 1e-300  # what a row without range is divided by; no other span changes by it


def row_starts(rows: int, columns: int) -> Ints:
    """Return where each row of a matrix begins among its values."""
    return np.arange(0, rows * columns, columns)


def shifted(rows: Floats, starts: Ints) -> tuple[Floats, Floats]:
    """Make the least of each row 0, in place; return the rows and what each is to be divided by to end at 1.

    A row without range stays 0 when it is divided, NaN stays NaN.
    """
    # Where the least is and then what it is: for a few models many times quicker than reducing each row.
    rows -= rows.take(rows.argmin(1) + starts)[:, None]
    span = rows.take(rows.argmax(1) + starts)
    span += _LEAST_SPAN
    return rows, span


def normalise(rows: Floats) -> Floats:
    """Scale each row to [0, 1] over its models, in place; a row without range becomes 0, NaN stays NaN."""
    rows, span = shifted(rows, row_starts(*rows.shape))
    rows /= span[:, None]
    return rows


def cost_norm(axes: Axes, chosen: Knobs) -> Floats:
    """Return cost in [0, 1] over deployed models. Unknown is the dearest when anything is known; an explicit 0 is free.

    Raises nothing: unknown prices are NaN, and no comparison with one decides anything here.
    """
    ratio = chosen.output_cost_ratio
    verbosity = np.ones_like(axes.price_in)
    median = axes.median_verbosity()
    if chosen.per_model_verbosity and median > 0.0:
        verbosity = np.where(np.isnan(axes.verbosity), 1.0, axes.verbosity / median)
    cost = axes.price_in + (ratio * axes.price_out * verbosity if ratio > 0.0 else 0.0)
    known = ~np.isnan(cost)
    if not known.any():
        return np.zeros_like(cost)
    low, high = cost[known].min(), cost[known].max()
    norm = (cost - low) / (high - low) if high > low else np.zeros_like(cost)
    return np.where(known, norm, 1.0)


def seconds(axes: Axes, chosen: Knobs) -> Floats:
    """Return the expected seconds of an answer per model; NaN for an untimed one."""
    timed = ~np.isnan(axes.ttft_s) & (axes.tps > 0.0)
    out = np.full_like(axes.ttft_s, np.nan)
    return np.add(axes.ttft_s, np.divide(chosen.expected_output_tokens, axes.tps, out=out, where=timed))


def unpriced(axes: Axes, chosen: Knobs) -> Bools:
    """Tell per model whether its cost is unknown at these knobs, as a boolean column."""
    missing = np.isnan(axes.price_in)
    return missing | np.isnan(axes.price_out) if chosen.output_cost_ratio > 0.0 else missing


def quickness(axes: Axes, chosen: Knobs) -> tuple[Floats, bool]:
    """Return 1 minus the speed norm, 0 for an untimed model, and whether speed has any range to count by."""
    took = seconds(axes, chosen)
    known = ~np.isnan(took)
    if chosen.speed_weight <= 0.0 or not known.any():
        return np.zeros_like(took), False
    low, high = took[known].min(), took[known].max()
    if high <= low:
        return np.zeros_like(took), False
    return np.where(known, 1.0 - (took - low) / (high - low), 0.0), True
