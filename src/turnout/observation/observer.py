"""All that is observed of the engines, started and stopped as one; ZeroMQ is loaded only where events are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from turnout.core import options
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet
from turnout.observation.introductions import Introductions
from turnout.observation.load_headers import LoadHeaders
from turnout.observation.scraper import Scraper

if TYPE_CHECKING:
    from turnout.observation.kv_events import KvEvents


class Observer:
    """Scrapes, KV events, and what follows from them: an engine that began a new life is a new incarnation.

    `on_change` hears of every endpoint whose load or cache was just reported: held requests may be asked again.
    """

    def __init__(
        self,
        fleet: Fleet,
        endpoints: list[options.Endpoint],
        load: options.Load,
        kv_events: options.KvEvents,
        *,
        clock: Callable[[], float],
        weight_version: Callable[[str], str] = lambda _: "",
        on_change: Callable[[EndpointState], None] = lambda _: None,
    ) -> None:
        self._fleet, self._clock = fleet, clock
        self.scraper = Scraper(fleet, endpoints, load, clock=clock, on_report=on_change, on_restart=self._on_restart)
        self.introductions = Introductions(fleet, clock=clock)
        self.load_headers = LoadHeaders(fleet, clock=clock, on_change=on_change)
        self.kv: KvEvents | None = None
        if any(endpoint.kv_events or endpoint.kv_discover or endpoint.load_events for endpoint in endpoints):
            from turnout.observation.kv_events import KvEvents  # loads ZeroMQ

            self.kv = KvEvents(
                fleet, endpoints, kv_events, clock=clock, weight_version=weight_version, on_change=on_change
            )

    def start(self) -> None:
        """Begin to observe."""
        self.scraper.start()
        self.introductions.start()
        if self.kv is not None:
            self.kv.start()

    def stats(self) -> dict[str, dict[str | tuple[str, ...], Any]]:
        """Return the figures of what is known of each endpoint, by the sources of the metrics."""
        now = self._clock()
        endpoints = list(self._fleet.endpoints.values())
        learnt = {state.name: state.precisions[state.mode] for state in endpoints}
        figures: dict[str, dict[str | tuple[str, ...], Any]] = {
            "mode": {state.name: int(state.mode) for state in endpoints},
            "precision": {name: precision.estimate for name, precision in learnt.items()},
            "predicted": {name: precision.predicted_total for name, precision in learnt.items()},
            "realised": {name: precision.realised_total for name, precision in learnt.items()},
            "report_age": {e.name: now - e.observed_at for e in endpoints if e.observed_at is not None},
            "signal_lost": {name: dict(scrapes.lost) for name, scrapes in self.scraper.scrapes.items()},
            "load_headers": {name: dict(counts) for name, counts in self.load_headers.counts.items()},
            "load_errors": {name: dict(scrapes.errors) for name, scrapes in self.scraper.scrapes.items()},
        }
        if self.kv is not None:
            figures["kv_events"] = self.kv.counts()
            figures["mode_changes"] = {
                (old.name.lower(), new.name.lower(), reason): number
                for (old, new, reason), number in self.kv.mode_changes().items()
            }
        return figures

    async def stop(self) -> None:
        """Observe no more."""
        await self.scraper.stop()
        await self.introductions.stop()
        if self.kv is not None:
            self.kv.stop()

    def _on_restart(self, endpoint: EndpointState) -> None:
        self._fleet.restarted(endpoint, self._clock())
