"""Which clusters a text is nearest to (selection §4): by similarity in 9 decimals, so that no rounding decides."""

from __future__ import annotations

import msgspec
import numpy as np

from turnout.core.selection.arrays import Floats, Ints

BILLION = 1e9  # scores and similarities are compared by 9 decimals
_SORTED_WHOLE_MAX = 512  # up to here sorting all clusters is cheaper than picking the candidates first


class Nearest(msgspec.Struct, frozen=True):
    """The top P clusters of one text, and what the linear head makes of it."""

    ordered: Ints
    """The clusters, nearest first."""
    billionths: Floats
    """Aligned with `ordered`: similarities, negative and in billionths, as they were sorted."""
    raised: Floats | None = None
    """What the linear head adds per model; None: nothing."""

    @property
    def ascending(self) -> Ints:
        """The clusters by index: the order in which the blend adds them up."""
        ascending = self.ordered.copy()
        ascending.sort()
        return ascending

    @property
    def nearest_first(self) -> tuple[int, ...]:
        """The clusters as the response cache looks through them."""
        return tuple(self.ordered.tolist())

    @property
    def similarities(self) -> tuple[float, ...]:
        """Aligned with `nearest_first`, rounded to 9 decimals."""
        return tuple([value / -BILLION + 0.0 for value in self.billionths.tolist()])  # + 0.0: no negative zero


def nearest(billionths: Floats, top_p: int, raised: Floats | None = None) -> Nearest:
    """Return the P clusters of largest similarity; equal ones in favour of the lower index.

    Args:
        billionths: similarities times -10^9, so that rounding leaves 9 decimals and sorting begins with the largest.
        top_p: how many.
        raised: what goes into the result.

    """
    whole = np.rint(billionths)
    size = len(whole)
    if size <= _SORTED_WHOLE_MAX or top_p >= size:
        ordered = whole.argsort(kind="stable")[:top_p]
    else:
        candidates = np.flatnonzero(whole <= np.partition(whole, top_p - 1)[top_p - 1])
        ordered = candidates[whole[candidates].argsort(kind="stable")][:top_p]
    return Nearest(ordered, whole.take(ordered), raised)


def at_centroid(cluster: int) -> Nearest:
    """Return what is nearest to a prompt that lies exactly on a centroid: that cluster alone."""
    return Nearest(np.array([cluster]), np.array([-BILLION]))
