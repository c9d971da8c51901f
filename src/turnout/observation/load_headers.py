"""Load that engines tell beside their answers: each header is an observation of the present (engines §2)."""

from __future__ import annotations

from collections.abc import Callable

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.prefill import Sent
from turnout.core.fleet.registry import Fleet
from turnout.engines.load_headers import read_load_header


class LoadHeaders:
    """Applies them, and counts per endpoint what they were: taken, empty (no name that is known) or bad."""

    def __init__(
        self, fleet: Fleet, *, clock: Callable[[], float], on_change: Callable[[EndpointState], None] = lambda _: None
    ) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self._fleet, self._clock, self._on_change = fleet, clock, on_change

    def heard(self, state: EndpointState, value: bytes) -> None:
        """Take in the header of an answer whose attempt is still counted as open."""
        told = read_load_header(value)
        counts = self.counts.setdefault(state.name, {"taken": 0, "empty": 0, "bad": 0})
        counts["bad"] += told.bad
        if told.report is None:
            counts["empty"] += not told.bad
            return
        counts["taken"] += 1
        prefill = state.prefill
        # The engine wrote it when the request it answers had left it; our own count is one ahead.
        own = max(0, state.in_flight - 1)
        sent = Sent(self._clock(), own, prefill.prefilling, prefill.opened_s, state.attempts_total)
        self._fleet.told(state, sent, told.report)
        self._on_change(state)
