"""Everything that runs share when engines fail or are full: gates, health, rescues, hedges, the poison fence.

One object per gateway, so that the way of a request without trouble passes one attribute of it: its gate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

import msgspec

from turnout.core import options
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.recovery.poison import PoisonFence
from turnout.engines.load_headers import LOAD_HEADER
from turnout.gateway.admission import Doors
from turnout.gateway.fallback import candidates
from turnout.gateway.health import Health
from turnout.gateway.hedge import Hedges
from turnout.gateway.holding import Hold, modes
from turnout.gateway.rescue import Rescues

if TYPE_CHECKING:
    from turnout.core.attempt import Attempt
    from turnout.gateway.open_run import OpenRun
    from turnout.gateway.run import Run
    from turnout.gateway.service import Gateway
    from turnout.http.response_head import ResponseHead


_UNKNOWN: Final = 2**62


class RecoveryOptions(msgspec.Struct, frozen=True):
    """The sections that say what happens then."""

    admission: options.Admission = options.Admission()
    stream: options.Stream = options.Stream()
    resume: options.Resume = options.Resume()
    hedge: options.Hedge = options.Hedge()
    ejection: options.Ejection = options.Ejection()
    continuation: frozenset[str] = frozenset()
    """Names of endpoints that continue assistant messages."""


class Recovery:
    """The shared parts, and the few questions that a run has for them."""

    def __init__(self, gateway: Gateway, settings: RecoveryOptions) -> None:
        self._gateway = gateway
        self._settings = settings
        self._modes = modes(settings.stream)
        self.doors = Doors(settings.admission, gateway.fleet)
        self.health = Health(gateway, settings.ejection)
        self.hedges = Hedges(settings.hedge)
        self.rescues = Rescues()
        self.fence = PoisonFence()
        self.rerouted = 0
        """Attempts that were sent elsewhere than the one before."""
        self.hear_load: Callable[[EndpointState, bytes], object] = _unheard
        """Takes what an answer tells of its engine's load; set by the composition root."""
        self.least_cache_tokens = _UNKNOWN
        """The smallest KV cache that an endpoint ever reported: no shorter prompt needs a closer look (Q3)."""

    @property
    def resume(self) -> options.Resume:
        """The section `resume`."""
        return self._settings.resume

    def reconfigure(self, settings: RecoveryOptions) -> None:
        """Take new settings; runs that are open keep what they were given at their start."""
        self._settings = settings
        self._modes = modes(settings.stream)
        self.doors.reconfigure(settings.admission)
        self.health.ejections.reconfigure(settings.ejection)
        self.hedges.reconfigure(settings.hedge)

    def tick(self, now: float) -> None:
        """Ten times a second."""
        self.health.tick(now)
        self.doors.tick(now)

    def counted(self) -> dict[str, int]:
        """What recovery has come to since the start, by the names of the metrics."""
        return {
            "rerouted_total": self.rerouted,
            "rescues_tried_total": self.rescues.tried,
            "rescues_completed_total": self.rescues.rescued,
            "rescues_mismatched_total": self.rescues.mismatched,
            "hedges_sent_total": self.hedges.sent,
            "hedges_won_total": self.hedges.won,
            "ejections_total": self.health.ejections.total,
            "poison_fenced_total": self.fence.fenced_total,
        }

    def again(self, attempts: list[Attempt]) -> None:
        """Hear that an attempt after the first is sent: elsewhere, or to the same endpoint once more (N10)."""
        self.rerouted += attempts[-1].endpoint is not attempts[-2].endpoint

    def hold(self, run: OpenRun) -> Hold:
        """How much of a run's stream is held back."""
        own = run.prepared.safety or run.catalogue.entry(run.model).safety
        return self._modes[own or self._settings.stream.safety]

    def hedging(self, run: OpenRun) -> bool:
        """Tell whether a slow first token of this run may be asked for twice."""
        asked = run.prepared.hedge
        return asked == b"on" or (asked is None and run.catalogue.entry(run.model).hedge)

    def keeps(self, run: OpenRun) -> bool:
        """Tell whether what is sent of a run's stream is kept: for a rescue, or for the response cache."""
        extra = run.extra
        stored = extra is not None and extra.ticket is not None and extra.ticket.consent.stores
        return stored or self.rescuable(run)

    def rescuable(self, run: OpenRun) -> bool:
        """Tell whether a broken stream of this run may be joined by another endpoint."""
        resume, request = self._settings.resume, run.request
        if resume.scope == "off" or request.n != 1 or run.rescue is not None:
            return False
        if not request.repeatable and resume.require_deterministic and not self.some_continue:
            return False
        pool = self._gateway.fleet.pool(run.model)
        members = pool.members if pool is not None else []
        if len(members) > 1 or (members and _is_untried(members[0], run)):  # the one that broke may have been removed
            return True
        return resume.scope == "fallback_models" and bool(candidates(cast("Run", run), joins=True))

    @property
    def some_continue(self) -> bool:
        """Whether there are endpoints that continue assistant messages."""
        return bool(self._settings.continuation)

    def continues(self, endpoint: EndpointState) -> bool:
        """Tell whether an endpoint continues assistant messages (R3)."""
        return endpoint.name in self._settings.continuation

    def reported(self, endpoint: EndpointState) -> None:
        """Hear that an endpoint told of its load or its cache."""
        cache_tokens = endpoint.kv_capacity_tokens
        if cache_tokens is not None and cache_tokens < self.least_cache_tokens:
            self.least_cache_tokens = cache_tokens
        self.doors.changed(endpoint, self._gateway.clock())

    def answered(self, endpoint: EndpointState, head: ResponseHead) -> None:
        """Look for the load in a whole answer of an endpoint that was asked for it, before its attempt ends."""
        told = head.get(LOAD_HEADER)
        if told is not None and not endpoint.gone:
            self.hear_load(endpoint, told)

    def picked(self, run: OpenRun, *, held: bool) -> None:
        """Count the pick of a run that had to wait for it; of one that was held also its look-up."""
        gateway, decision = self._gateway, run.exchange.decision if run.exchange is not None else None
        if decision is not None and decision.picked is not None:
            gateway.meter.picked(decision.picked.name)
            if held:
                gateway.meter.prefix(decision.prefix_result, decision.blocks, decision.matched_blocks)
            gateway.decisions.append((run.call_id, decision))


def _unheard(_: EndpointState, __: bytes) -> None:
    """Nobody observes."""


def _is_untried(endpoint: EndpointState, run: OpenRun) -> bool:
    return run.exchange is not None and all(attempt.endpoint.name != endpoint.name for attempt in run.exchange.attempts)
