"""One circuit breaker per endpoint incarnation: resilience §7, B1–B7, as a value that knows no HTTP.

Theory of operation. Every attempt is opened under an *epoch*; each change of state, and each lease of the half-open
probe slot, starts a new one. A result that comes back under an older epoch is late and changes nothing (B4). So the
slot needs no owner: it is free, or it is held by the one attempt whose epoch is the current one.

    closed ── 3 faults in a row, or half of ≥ 10 results in 10 s ──► open
    open ── its time is over, next attempt opens ──► half-open, slot taken
    half-open ── success ──► closed, slow start · fault ──► open, twice as long · neutral ──► slot free
"""

from __future__ import annotations

import enum
from typing import Final

from turnout.core import options
from turnout.core.kit.ratio_window import RatioWindow

_FORGET_S: Final = 60.0  # B3: closed this long, the next opening counts as the first
_EXPLICIT_MAX_S: Final = 60.0  # B3: the longest time that an upstream can ask for
_LEASE_S: Final = 600.0  # B5: the slot returns at the latest with D5 (timeout.total_s)
_FIRST_SHARE: Final = 0.1  # B7: where slow start begins


class State(enum.StrEnum):
    """The value is the metric label."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """May this endpoint be used, and for how much of its share; `plain` is the usual case: closed, at full share."""

    __slots__ = (
        "_closed_at",
        "_epoch",
        "_faults_in_row",
        "_lease_until",
        "_opened_at",
        "_options",
        "_results",
        "_slow_from",
        "openings",
        "opens_total",
        "plain",
        "reopen_at",
        "state",
    )

    def __init__(self, breaker: options.Breaker) -> None:
        self._options = breaker
        self.state = State.CLOSED
        self.plain = True
        self.openings = 0
        self.opens_total = 0
        self.reopen_at = 0.0
        self._opened_at = 0.0
        self._closed_at: float | None = None
        self._epoch = 0
        self._faults_in_row = 0
        self._lease_until: float | None = None
        self._results = RatioWindow(breaker.window_s)
        self._slow_from: float | None = None

    def allow(self, now: float) -> bool:
        """Tell whether an attempt may open: closed, or half-open with a free slot."""
        if self.state is State.CLOSED:
            return True
        if self.state is State.OPEN:
            return now >= self.reopen_at
        return self._lease_until is None or now >= self._lease_until

    def opened(self, now: float) -> int:
        """An attempt opens; returns its epoch. Unless closed, it takes the slot, also when `allow` was relaxed (B9)."""
        if self.state is not State.CLOSED:
            self.state = State.HALF_OPEN
            self._lease_until = now + _LEASE_S
            self._epoch += 1
        return self._epoch

    def success(self, epoch: int, now: float) -> None:
        """Count a complete response, the only thing that is a success (B2)."""
        if epoch != self._epoch:
            return
        if self.state is State.CLOSED:
            self._faults_in_row = 0
            self._results.add_good(now)
        elif self._holds_slot(epoch):
            self.state = State.CLOSED
            self._epoch += 1
            self._lease_until = None
            self._closed_at = now
            self._faults_in_row = 0
            self._results.clear()
            self.start_slowly(now)

    def fault(self, epoch: int, now: float, open_s: float | None = None) -> None:
        """Count a fault; `open_s` is a Retry-After or an explicit time that came with it."""
        if epoch != self._epoch:
            return
        if self.state is State.CLOSED:
            self._faults_in_row += 1
            self._results.add_bad(now)
            if self._faults_in_row >= self._options.consecutive or self._ratio_reached(now):
                if self._closed_at is None or now - self._closed_at >= _FORGET_S:
                    self.openings = 0
                self._open(now, open_s)
        elif self._holds_slot(epoch):
            self._open(now, open_s)

    def neutral(self, epoch: int, now: float) -> None:  # noqa: ARG002 - one signature for all three results
        """End an attempt that says nothing about the endpoint: cancel, 4xx, 429, an error of ours. Frees the slot."""
        if self.state is State.HALF_OPEN and epoch == self._epoch:
            self._lease_until = None

    def probe_answered(self, now: float) -> None:  # noqa: ARG002 - facts carry their instant
        """A good readiness probe closes nothing; it may bring half-open forward to `open_s` after opening (O5)."""
        if self.state is State.OPEN:
            self.reopen_at = min(self.reopen_at, self._opened_at + self._options.open_s)

    def start_slowly(self, now: float) -> None:
        """Begin slow start: after closing, after (re)joining, after being reachable again."""
        self._slow_from = now
        self.plain = False

    def share(self, now: float) -> float:
        """Share of the endpoint's normal traffic, growing from 0.1 to 1 over `slow_start_s` (B7)."""
        start = self._slow_from
        if start is None:
            return 1.0
        passed = max(0.0, now - start) / self._options.slow_start_s
        if passed >= 1.0:
            self._slow_from = None
            self.plain = self.state is State.CLOSED
            return 1.0
        return _FIRST_SHARE + (1.0 - _FIRST_SHARE) * passed

    def results(self, now: float) -> tuple[int, int]:
        """Faults and all results of the window, for comparison with siblings (O2)."""
        return self._results.totals(now)

    def forget_results(self) -> None:
        """Begin a new window: what led to an ejection must not lead to the next one."""
        self._results.clear()

    def _holds_slot(self, epoch: int) -> bool:
        return self.state is State.HALF_OPEN and epoch == self._epoch and self._lease_until is not None

    def _ratio_reached(self, now: float) -> bool:
        bad, total = self._results.totals(now)
        return total >= self._options.ratio_min and bad >= self._options.ratio * total

    def _open(self, now: float, open_s: float | None) -> None:
        self.openings += 1
        self.opens_total += 1
        # The exponent is bounded because the cap is reached long before; 2.0 ** 2000 would overflow.
        grown = self._options.open_s * 2.0 ** min(self.openings - 1, 30)
        length = min(grown, self._options.open_max_s)
        if open_s is not None:
            length = max(length, min(open_s, _EXPLICIT_MAX_S))
        self.state = State.OPEN
        self.plain = False
        self.reopen_at = now + length
        self._opened_at = now
        self._epoch += 1
        self._lease_until = None
        self._slow_from = None
