"""Out because its siblings do better: relative ejection of endpoints that fail more than their pool (O2, O3).

It reads the breaker's own window, so it costs nothing per request; a shell calls `review` about once a second. Slow is
no reason: that is a cost of scheduling. What is out comes back after its time, slowly.
"""

from __future__ import annotations

import statistics

from turnout.core.fleet.breaker import State
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.options import Ejection


class Ejections:
    """Who is out and until when. Entries of removed endpoints go with the next review of their pool."""

    __slots__ = ("_options", "_records", "total")

    def __init__(self, options: Ejection) -> None:
        self._options = options
        self._records: dict[EndpointState, list[float]] = {}  # [times, until, ejected at]
        self.total = 0

    def reconfigure(self, options: Ejection) -> None:
        """Take new options; who is out stays out for the time that was said."""
        self._options = options

    def review(self, members: list[EndpointState], now: float) -> list[EndpointState]:
        """Bring back those whose time is over, and eject at most one; returns who was ejected."""
        options = self._options
        for endpoint in [known for known in self._records if known.gone]:
            del self._records[endpoint]
        for endpoint in members:
            record = self._records.get(endpoint)
            if record is None:
                continue
            if endpoint.ejected and now >= record[1]:
                endpoint.ejected = False
                endpoint.breaker.forget_results()
                endpoint.breaker.start_slowly(now)
            elif not endpoint.ejected and now - record[2] >= options.forget_s:
                del self._records[endpoint]
        if len(members) < options.pool_min:
            return []
        out = sum(1 for endpoint in members if is_out(endpoint))
        if out + 1 > int(len(members) * options.pool_share_max):
            return []
        worst = self._worst(members, now)
        if worst is None:
            return []
        self._eject(worst, now)
        return [worst]

    def _worst(self, members: list[EndpointState], now: float) -> EndpointState | None:
        """The endpoint with the largest margin above the median of the others, when it is large enough."""
        ratios: dict[EndpointState, float] = {}
        for endpoint in members:
            bad, total = endpoint.breaker.results(now)
            if total >= self._options.results_min and not is_out(endpoint):
                ratios[endpoint] = bad / total
        found: tuple[float, EndpointState] | None = None
        for endpoint, ratio in ratios.items():
            others = [other for name, other in ratios.items() if name is not endpoint]
            if not others:
                continue
            margin = round(ratio - statistics.median(others), 9)
            if margin >= self._options.margin and (found is None or margin > found[0]):
                found = (margin, endpoint)
        return None if found is None else found[1]

    def _eject(self, endpoint: EndpointState, now: float) -> None:
        options = self._options
        record = self._records.setdefault(endpoint, [0, 0.0, 0.0])
        record[0] += 1
        record[1] = now + min(options.out_s * record[0], options.out_max_s)
        record[2] = now
        endpoint.ejected = True
        self.total += 1


def is_out(endpoint: EndpointState) -> bool:
    """Whether an endpoint takes no normal traffic, for whatever reason."""
    return endpoint.ejected or endpoint.unreachable or endpoint.probe_failing or endpoint.breaker.state is State.OPEN
