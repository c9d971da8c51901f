"""How far a predicted match can be believed, learnt from the cached tokens that engines report (scheduling §3.2)."""

from __future__ import annotations

import enum
from typing import Final

_WEIGHT: Final = 20_000.0  # tokens that the prior is worth
_KEEP: Final = 0.98
_REPORTS_MIN: Final = 50
_DISTRUST: Final = 0.2
_TRUST: Final = 0.4


class Mode(enum.IntEnum):
    """Where the knowledge of an endpoint's cache comes from."""

    APPROXIMATE = 0
    DEGRADED = 1
    EXACT = 2


_PRIORS: Final = {Mode.APPROXIMATE: 0.9, Mode.DEGRADED: 0.7, Mode.EXACT: 1.0}


class Precision:
    """One (endpoint, mode). `value` is the factor for predicted tokens: 0 while the prediction is not trusted."""

    __slots__ = ("_predicted", "_prior", "_realised", "estimate", "known", "predicted_total", "realised_total",
                 "reports", "trusted", "value")  # fmt: skip

    def __init__(self, mode: Mode) -> None:
        self._prior = _PRIORS[mode]
        self._realised = self._predicted = 0.0
        self.known = False
        """Whether the endpoint has told a positive number: from then on a null is 0."""
        self.estimate = self.value = self._prior
        self.trusted = True
        self.reports = 0
        self.predicted_total = 0
        self.realised_total = 0

    def reported(self, real: int | None, predicted: int) -> None:
        """Take in one response. None is unknown until the endpoint has reported a positive number once, then 0."""
        if real is None:
            if not self.known:
                return
            real = 0
        elif real > 0:
            self.known = True
        if predicted <= 0:
            return
        realised = min(real, predicted)
        self.predicted_total += predicted
        self.realised_total += realised
        self.reports += 1
        self._realised = _KEEP * self._realised + realised
        self._predicted = _KEEP * self._predicted + predicted
        estimate = (self._realised + _WEIGHT * self._prior) / (self._predicted + _WEIGHT)
        self.estimate = estimate
        if self.trusted:
            self.trusted = not (estimate < _DISTRUST and self.reports >= _REPORTS_MIN)
        else:
            self.trusted = estimate >= _TRUST
        self.value = estimate if self.trusted else 0.0
