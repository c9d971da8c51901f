"""The doors of all models: who waits at which, who is woken, and what is kept in step with the fleet (resilience §9).

Nothing here runs for a request that finds a place at once. A place that becomes free wakes the head of the queue; the
tick does so too, because places also appear when endpoints return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout.core.admission.gate import Applicant, Gate, request_cost
from turnout.core.admission.queue import NORMAL
from turnout.core.fleet.level import settle
from turnout.core.options import Admission

if TYPE_CHECKING:
    from turnout.core.fleet.endpoint import EndpointState
    from turnout.core.fleet.registry import Fleet
    from turnout.gateway.run import Run

_SAMPLE_S: Final = 1.0


class Doors:
    """One gate per model; gates of models that are gone hold nothing and cost nothing."""

    def __init__(self, options: Admission, fleet: Fleet) -> None:
        self.options = options
        self._fleet = fleet
        self._gates: dict[str, Gate] = {}
        self._ended: dict[str, int] = {}
        self._sampled_s = 0.0

    def __iter__(self) -> object:
        return iter(self._gates.items())

    def gate(self, model: str) -> Gate:
        """The gate of a model, made on first use."""
        gate = self._gates.get(model)
        if gate is None:
            gate = self._gates[model] = Gate(self.options)
            self._resize(model, gate)
        return gate

    @property
    def waiting(self) -> int:
        """Requests in all queues."""
        return sum(gate.queue.size for gate in self._gates.values())

    def reconfigure(self, options: Admission) -> None:
        """Take new limits; who waits goes on waiting under them."""
        self.options = options
        for gate in self._gates.values():
            gate.reconfigure(options)

    def tick(self, now: float) -> None:
        """End waits that took too long, wake whom a place is free for, and learn how fast places return."""
        sample = now - self._sampled_s >= _SAMPLE_S
        if sample:
            self._sampled_s = now
        for model, gate in self._gates.items():
            if sample:
                self._age(model, now)
                self._resize(model, gate)
                self._sample(model, gate, now)
            if gate.queue.size:
                for ticket in gate.queue.expired(now):
                    if not (ticket.held and ticket.owner.turn()):  # holding never costs a request its answer
                        ticket.owner.queue_expired()
                self.wake(gate, now)

    def forgive(self, gap_s: float) -> None:
        """Let nobody's wait end because this process slept."""
        for gate in self._gates.values():
            for ticket in gate.queue.tickets():
                ticket.expires_s += gap_s

    def wake(self, gate: Gate, now: float) -> None:
        """Let the heads of the queue try, until one finds no place (Q6); the cold gate stops nobody but its own."""
        queue = gate.queue
        while queue.size:
            head = queue.head(now)
            if head is None or not (head.owner.turn() or head.aside):
                return

    def changed(self, endpoint: EndpointState, now: float) -> None:
        """Hear that an endpoint reported: it may have more places or fewer, and who is held for its sake is asked."""
        before = endpoint.places
        settle(endpoint, now, self.options)
        freed = endpoint.places > before
        for model in endpoint.models:
            gate = self._gates.get(model)
            if gate is not None and (gate.holding or (freed and gate.queue.size)):
                self.wake(gate, now)

    def _age(self, model: str, now: float) -> None:
        """Believe no report for ever: an endpoint that fell silent has the places that it is known to have (Q11)."""
        pool = self._fleet.pool(model)
        for member in pool.members if pool is not None else ():
            if member.observed_at is not None:
                settle(member, now, self.options)

    def _resize(self, model: str, gate: Gate) -> None:
        pool = self._fleet.pool(model)
        if pool is not None:
            gate.resize(sum(member.places for member in pool.members if not member.unreachable))

    def _sample(self, model: str, gate: Gate, now: float) -> None:
        """Places given back since the last sample: what was opened less what is still in flight."""
        pool = self._fleet.pool(model)
        ended = 0 if pool is None else sum(member.attempts_total - member.in_flight for member in pool.members)
        gate.drained.gave_back(ended - self._ended.get(model, ended), now)  # a member that left takes its count along
        self._ended[model] = ended


def applicant(run: Run) -> Applicant:
    """Who asks, in the words of the gate."""
    principal, prepared = run.principal, run.prepared
    anonymous = not principal.key_id
    return Applicant(
        tenant=principal.tenant,
        cost=request_cost(run.floor, run.request.max_tokens),
        deadline_s=run.deadline_s,
        anonymous=anonymous,
        priority=max(prepared.priority, NORMAL) if anonymous else prepared.priority,
        body_bytes=len(run.request.body),
    )
