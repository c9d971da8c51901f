"""Requests that scheduling holds: who is asked next, and when asking is of no use (scheduling §5.2).

The order is that of `min_e prefill_s − 0.2 · waited`: cheap ones first, nobody for ever. Since everyone's waiting grows
alike, the order of two requests never changes, so a heap with a fixed key is enough. A verdict `queue` holds for
everybody: it stops the round. A verdict `cold_gate` concerns its own request only: it steps aside until its `retry_at`.
"""

from __future__ import annotations

import heapq
from typing import Final, Generic, TypeVar

from turnout.core.scheduling.decision import Decision
from turnout.core.scheduling.turnout import least_prefill_s

R = TypeVar("R")

PATIENCE: Final = 0.2  # seconds of prefill that one second of waiting is worth


class HeldQueue(Generic[R]):
    """The held requests of one pool, one tenant and one priority; bounds and deadlines are the caller's.

    A driver's round, after every event that may free something:

        while (request := held.head(now)) is not None:
            decision = schedule(ask of request, …)
            if decision.verdict is HELD:
                if not held.again(request, decision, now): break
            else: held.leave(request); bind or answer
    """

    __slots__ = ("_aside", "_entered", "_heap", "_serial", "gated_total", "held_total")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, R]] = []
        self._aside: list[tuple[float, int, R]] = []
        self._entered: dict[int, tuple[R, float, int]] = {}
        self._serial = 0
        self.held_total = 0
        self.gated_total = 0

    def __len__(self) -> int:
        return len(self._entered)

    def enter(self, request: R, decision: Decision, now: float) -> None:
        """Keep a request whose decision is HELD."""
        self.held_total += 1
        self.gated_total += decision.held == "cold_gate"
        self._serial += 1
        self._entered[id(request)] = (request, now, self._serial)
        self._place(request, decision, now)

    def leave(self, request: R) -> bool:
        """Forget a request: bound, expired or gone; False when it was not held."""
        return self._entered.pop(id(request), None) is not None

    def head(self, now: float) -> R | None:
        """Return who is to be asked next; None when there is nobody to ask at this instant."""
        aside = self._aside
        while aside and (aside[0][0] <= now or not self._is_live(aside[0])):
            entry = heapq.heappop(aside)
            if self._is_live(entry):
                # Its key is not known here: whoever waited at the gate is asked first, it costs one decision.
                heapq.heappush(self._heap, (float("-inf"), entry[1], entry[2]))
        heap = self._heap
        while heap and not self._is_live(heap[0]):
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def again(self, request: R, decision: Decision, now: float) -> bool:
        """Put the head back after it was held once more; False ends the round."""
        if self._heap and self._heap[0][2] is request:
            heapq.heappop(self._heap)
        self._place(request, decision, now)
        return decision.held == "cold_gate"

    def next_look(self) -> float | None:
        """When a gated request wants to be asked again."""
        return self._aside[0][0] if self._aside else None

    def _place(self, request: R, decision: Decision, now: float) -> None:
        _, entered, serial = self._entered[id(request)]
        if decision.held == "cold_gate":
            heapq.heappush(self._aside, (max(decision.retry_at, now), serial, request))
        else:
            heapq.heappush(self._heap, (least_prefill_s(decision) + PATIENCE * entered, serial, request))

    def _is_live(self, entry: tuple[float, int, R]) -> bool:
        known = self._entered.get(id(entry[2]))
        return known is not None and known[2] == entry[1]
