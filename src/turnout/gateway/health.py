"""Once a tick and once a second: who delivers, who is lost, who fails more than its siblings (resilience §8, R9).

What open responses say about an endpoint is looked up when somebody asks, not noted with every byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from turnout.core.errors import ErrorKind
from turnout.core.fleet.ejection import Ejections
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.health import ONLINE, PATIENCE_S, condition, is_lost, makes_progress
from turnout.core.options import Ejection

if TYPE_CHECKING:
    from turnout.gateway.service import Gateway

_REVIEW_S: Final = 1.0
_SUSPENDED_S: Final = 5.0


class Health:
    """Watches endpoints through the open runs of a gateway."""

    def __init__(self, gateway: Gateway, ejection: Ejection) -> None:
        self._gateway = gateway
        self.ejections = Ejections(ejection)
        self._reviewed_s = 0.0
        self._ticked_s: float | None = None
        self._conditions: dict[str, str] = {}
        self.tell: Callable[[str, dict[str, object]], None] = lambda _, __: None
        """Hears of changes of endpoints; set by the composition root."""

    def last_byte_s(self, endpoint: EndpointState) -> float | None:
        """When the open responses of an endpoint last heard from it; None when it has none that did."""
        latest: float | None = None
        for run in self._gateway.runs:
            response = run.response
            if response is not None and response.attempt.endpoint is endpoint:
                heard_s = response.heard_s
                if heard_s is not None and (latest is None or heard_s > latest):
                    latest = heard_s
        return latest

    def progress(self, endpoint: EndpointState, now: float) -> bool:
        """Whether it delivered in the last seconds (O5)."""
        return makes_progress(endpoint, self.last_byte_s(endpoint), now)

    def woke(self, now: float) -> None:
        """Forgive a process that was suspended, before anybody is found to be late (F70)."""
        if self._ticked_s is not None and now - self._ticked_s > _SUSPENDED_S:
            self._forgive(now - self._ticked_s)
        self._ticked_s = now

    def tick(self, now: float) -> None:
        """Give up on responses of lost endpoints, and review ejections."""
        fleet = self._gateway.fleet
        if fleet.leaving:
            fleet.leaving = [endpoint for endpoint in fleet.leaving if endpoint.in_flight]
        if any(map(is_lost, fleet.endpoints.values())) or any(map(is_lost, fleet.leaving)):
            self._end_lost(now)
        self._notice(now)
        if now - self._reviewed_s >= _REVIEW_S:
            self._reviewed_s = now
            for model in fleet.models:
                pool = fleet.pool(model)
                if pool is not None:
                    self.ejections.review(pool.members, now)

    def _notice(self, now: float) -> None:
        """Tell what has become of endpoints since the last look: each change once, whatever it costs requests (B8)."""
        known, endpoints = self._conditions, self._gateway.fleet.endpoints
        for name in [name for name in known if name not in endpoints]:
            del known[name]
        for name, endpoint in endpoints.items():
            if endpoint.refused and endpoint.cooldown_until <= now:
                endpoint.refused = False
            current, before = condition(endpoint), known.get(name, ONLINE)
            if current != before:
                if current == ONLINE:
                    del known[name]
                else:
                    known[name] = current
                self.tell("endpoint_changed", {"endpoint": name, "was": before, "now": current})

    def _end_lost(self, now: float) -> None:
        """R9: one second without a byte is enough from an endpoint that is unreachable or failing its probes."""
        for run in list(self._gateway.runs):
            response = run.response
            if response is None or run.outcome is not None or not is_lost(response.attempt.endpoint):
                continue
            heard_s = max(response.heard_s or 0.0, response.attempt.started_s)
            if now - heard_s >= PATIENCE_S and response.attempt.is_open:
                gone = response.attempt.endpoint.gone
                kind = ErrorKind.TIMEOUT_STALL if response.committed else ErrorKind.TIMEOUT_FIRST_TOKEN
                run.failed(response, ErrorKind.ENDPOINT_GONE if gone else kind, None)

    def _forgive(self, gap_s: float) -> None:
        """A process that slept must not take its sleep for the silence of everybody else (§1)."""
        for run in self._gateway.runs:
            if run.exchange is not None:
                run.exchange.deadline_s += gap_s
            for response in (run.response, run.rival):
                if response is not None:
                    response.shift(gap_s)
        self._gateway.recovery.doors.forgive(gap_s)
