"""What follows a failure before the commit point: the loop of resilience §3, and the state that it needs.

Another endpoint at once, else the same one after a jittered pause when the failure allows it, else a standby one, else
another model, else one believed broken, within attempts, retry budget and deadline. A try elsewhere waits for the
budget and for a place, one at the same endpoint does not.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from turnout.core.admission.gate import Applicant, Gate
from turnout.core.admission.queue import FIRST, Ticket
from turnout.core.attempt import Attempt
from turnout.core.errors import RETRY, ErrorKind, IllegalTransition, Outcome
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.kit.rng import Rng
from turnout.core.lifecycle import (
    NEXT,
    GiveUp,
    Happening,
    Next,
    Open,
    Queued,
    State,
    Trouble,
    Wait,
    ending_of,
)
from turnout.core.options import Retry
from turnout.core.retry_budget import RetryBudget
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision
from turnout.core.scheduling.pipeline import schedule
from turnout.core.scheduling.seats import take_seat, take_seat_again
from turnout.core.scheduling.types import DropReason

DEADLINE_MARGIN_S: Final = 0.25
_BACKOFF_BASE_S: Final = 0.25
_BUDGET_LOOK_S: Final = 0.1  # N5: how often an exchange that waits for the budget looks again
_BUDGET_WAIT_MAX_S: Final = 30.0  # D6
# Of a stream that was held back: the client has seen nothing of it, so another attempt is as good as a first one.
_BROKEN_STREAM = (ErrorKind.STREAM_CUT, ErrorKind.TIMEOUT_STALL)
_BROKEN: Final = frozenset((DropReason.BREAKER_OPEN, DropReason.EJECTED, DropReason.PROBE_FAILING))


class Route(msgspec.Struct, frozen=True):
    """What asking another model takes (N6)."""

    ask: Ask
    pool: Pool
    budget: RetryBudget
    gate: Gate


class Owner(Protocol):
    """Whoever drives an exchange. It is asked only when there is trouble; `ticket.owner` is it."""

    def applicant(self) -> Applicant:
        """Say who asks, for admission."""

    def has_next_model(self) -> bool:
        """Tell whether `next_model` might return one."""

    def next_model(self) -> Route | None:
        """Return the next fallback model that may serve this request; None when there is none."""


class RetryLoop:
    """The inner half of an exchange; `Exchange` adds what happens from outside."""

    __slots__ = (
        "_answered",
        "_budget",
        "_counted",
        "_fleet",
        "_gate",
        "_options",
        "_owner",
        "_pool",
        "_rng",
        "_same_tries",
        "ask",
        "attempts",
        "deadline_s",
        "decision",
        "outcome",
        "queued_at_s",
        "retry_after_s",
        "started_s",
        "state",
        "trouble",
    )

    def __init__(
        self,
        ask: Ask,
        pool: Pool,
        fleet: Fleet,
        options: Retry,
        budget: RetryBudget,
        rng: Rng,
        now: float,
        total_s: float,
        gate: Gate | None = None,
        owner: Owner | None = None,
    ) -> None:
        self.ask = ask
        self.state = State.OPENED
        self.attempts: list[Attempt] = []
        self.decision: Decision | None = None
        self.outcome: Outcome | None = None
        self.retry_after_s: float | None = None
        self.started_s = now
        self.deadline_s = now + total_s
        self._pool = pool
        self._fleet = fleet
        self._options = options
        self._budget = budget
        self._rng = rng
        self._same_tries = 0
        self.queued_at_s: float | None = None
        self._answered = False
        self._gate = gate
        self._owner = owner
        self._counted = False
        self.trouble: Trouble | None = None

    def _after(self, attempt: Attempt, kind: ErrorKind, now: float, retry_after_s: float | None) -> Next:
        rule = RETRY[kind]
        elsewhere = rule.other or kind in _BROKEN_STREAM
        if not elsewhere or now + DEADLINE_MARGIN_S > self.deadline_s:
            return GiveUp(self._exhausted())
        if self.attempts_left() < 1:
            return self._another_model(now)
        self.ask.tried = (*self.ask.tried, attempt.endpoint.name)
        if kind is ErrorKind.CONTEXT_OVERFLOW and attempt.endpoint.context_max is not None:
            # Only a larger or an unknown context can help: the estimate is raised to what has just been refused.
            self.ask.estimate_floor = max(self.ask.estimate_floor, attempt.endpoint.context_max + 1)
        following = self._elsewhere(now)
        if following is not None:
            return following
        pause = self._pause(attempt.endpoint, rule.same, now, retry_after_s)
        if pause is not None and self._budget.take(now):
            self._same_tries += 1
            self._move(Happening.PAUSE)
            return Wait(now + pause)
        return self._last_resort(now)

    def _elsewhere(self, now: float) -> Next | None:
        """N2 (1): an untried endpoint with no soft filter relaxed; None when there is none."""
        self.ask.relax = False
        if self.queued_at_s is not None and not self._budget.has(now) and self._untried():
            return self._queue(now)  # nothing could open, so nothing is scheduled
        decision = schedule(self.ask, self._pool, self._fleet, now, self._rng)
        return None if decision.picked is None else self._open_or_queue(decision.picked, "other", decision, now)

    def _last_resort(self, now: float) -> Next:
        """N2 (3) and (5): a standby endpoint, or one that soft filters had dropped."""
        self.ask.relax = True
        decision = schedule(self.ask, self._pool, self._fleet, now, self._rng)
        picked = decision.picked
        if picked is not None and picked.standby and _BROKEN.isdisjoint(decision.relaxed):
            return self._open_or_queue(picked, "standby", decision, now)
        following = self._another_model(now)
        if type(following) is not GiveUp:
            return following
        if picked is not None:
            return self._open_or_queue(picked, "relaxed", decision, now)
        return (self._wait_as_first(now) if busy(decision) else None) or following

    def _another_model(self, now: float) -> Next:
        """N2 (4), N6: the next configured model, as if it had been asked for in the first place."""
        decision = self._turn_to_next_model(now)
        if decision is None or decision.picked is None:
            return GiveUp(self._exhausted())
        self._same_tries = 0
        return self._open(decision.picked, "model", decision, now)

    def _turn_to_next_model(self, now: float, unable: tuple[str, ...] = ()) -> Decision | None:
        """Make the next model that somebody can serve the current one; `unable` are endpoints that are no use."""
        trouble = self._in_trouble()
        while (
            self._owner is not None
            and trouble.models < self._options.models
            and len(self.attempts) < self._options.attempts
            and (route := self._owner.next_model()) is not None
        ):
            trouble.models += 1
            route.ask.tried = unable
            decision = schedule(route.ask, route.pool, self._fleet, now, self._rng)
            if decision.picked is None or not route.budget.take(now):
                continue
            if not self._move_share(route.gate):
                continue
            trouble.before_model = len(self.attempts)
            self.ask, self._pool, self._budget, self._gate = route.ask, route.pool, route.budget, route.gate
            return decision
        return None

    def _move_share(self, gate: Gate) -> bool:
        """Hold the principal's place at another model's gate instead; False when it may hold no more there."""
        assert self._owner is not None  # it named the other model
        who = self._owner.applicant()
        if not gate.may_serve(who):
            return False
        self._give_share()
        self._hold(gate, who)
        return True

    def _hold(self, gate: Gate, who: Applicant | Ticket) -> None:
        if who.anonymous:
            gate.anonymous += 1
            self._counted = True
        elif gate.limited:
            gate.held.take(who.tenant)
            self._in_trouble().holds_share = True

    def _give_share(self) -> None:
        """Give back what the principal holds at the gate."""
        gate, trouble = self._gate, self.trouble
        if gate is not None and self._counted:
            gate.anonymous -= 1
            self._counted = False
        if gate is not None and self._owner is not None and trouble is not None and trouble.holds_share:
            gate.held.give(self._owner.applicant().tenant)
            trouble.holds_share = False

    def _open_or_queue(self, endpoint: EndpointState, kind: str, decision: Decision, now: float) -> Next:
        if self._budget.take(now):
            return self._open(endpoint, kind, decision, now)
        return GiveUp(self._exhausted()) if kind == "relaxed" else self._queue(now)

    def _queue(self, now: float) -> Next:
        """N5: a try elsewhere waits for the budget, so that losing one endpoint of many costs no client an error."""
        if self.queued_at_s is None:
            self.queued_at_s = now
        until_s = now + _BUDGET_LOOK_S
        if until_s > self.queued_at_s + _BUDGET_WAIT_MAX_S or until_s + DEADLINE_MARGIN_S > self.deadline_s:
            return GiveUp(self._exhausted())
        self._move(Happening.PAUSE)
        return Wait(until_s)

    def _untried(self) -> bool:
        tried = self.ask.tried
        return any(e.name not in tried and not (e.gone or e.draining or e.unreachable) for e in self._pool.members)

    def _pause(
        self,
        endpoint: EndpointState,
        may_repeat: bool,  # noqa: FBT001 - a fact
        now: float,
        retry_after_s: float | None,
    ) -> float | None:
        """Return how long to wait before asking the same endpoint again; None when it may not be asked (N2, N4, Y1)."""
        tried = self.ask.tried
        standby = any(e.standby and e.name not in tried and usable(e, self.ask.model, now) for e in self._pool.members)
        follows = standby or (self._owner is not None and self._owner.has_next_model())
        if self._pool.pairs is not None:
            return None  # one leg cannot be asked again alone
        if not may_repeat or self._same_tries >= (1 if follows else 2):
            return None
        pause = self._rng.random() * _BACKOFF_BASE_S * 2**self._same_tries
        if retry_after_s is not None:
            if retry_after_s > self._options.after_max_s:
                return None
            pause = max(pause, retry_after_s)
        if not endpoint.breaker.allow(now + pause):
            return None
        return pause if now + pause + DEADLINE_MARGIN_S < self.deadline_s else None

    def _wait_as_first(self, now: float) -> Queued | None:
        """Wait for one of those who are only full: what has been admitted once is the next to get a place."""
        if self._gate is None or self._owner is None:
            return None
        applicant = msgspec.structs.replace(self._owner.applicant(), priority=FIRST)
        return self._wait_for_place(self._gate.enter(applicant, self._owner, now))

    def _wait_for_place(self, ticket: Ticket) -> Queued:
        if self.state is not State.COMMITTED:  # a stream that waits to be joined stays committed
            self._move(Happening.QUEUE)
        self._in_trouble().ticket = ticket
        return Queued(ticket)

    def _open(self, endpoint: EndpointState, kind: str, decision: Decision | None, now: float) -> Open:
        self._move(Happening.ATTEMPT)
        self.queued_at_s = None
        attempt = Attempt(len(self.attempts) + 1, endpoint, kind, now)
        attempt.model = self.ask.model
        attempt.epoch = endpoint.breaker.opened(now)
        if decision is not None:
            self.decision = decision
            attempt.seat = take_seat(decision, self.ask, self._pool, self._fleet, now)
        else:
            attempt.seat = take_seat_again(endpoint, self.ask, self._pool, self._fleet, now)
        if self._pool.pairs is not None:
            attempt.legs = self._pool.pairs.legs(decision, self.ask, self._pool, self._fleet, now)
        self.attempts.append(attempt)
        return Open(attempt)

    def budget_left(self, now: float) -> bool:
        """Tell whether one more attempt could be paid for."""
        return self._budget.has(now)

    def attempts_left(self) -> int:
        """Return how many more attempts the current model may have."""
        options = self._options
        before = self.trouble.before_model if self.trouble is not None else 0
        return min(options.attempts, before + options.attempts_per_model) - len(self.attempts)

    def _exhausted(self) -> Outcome:
        return ending_of(self.attempts[-1], answered=self._answered)

    def _in_trouble(self) -> Trouble:
        if self.trouble is None:
            self.trouble = Trouble()
        return self.trouble

    def _running(self, event: str) -> Attempt:
        """Return the attempt that is open; an event of an attempt that is not is a bug of the caller."""
        for attempt in reversed(self.attempts):
            if attempt.is_open:
                return attempt
        raise self._illegal(event)

    def _illegal(self, event: str) -> IllegalTransition:
        return IllegalTransition(f"{event} in {self.state.name} with {len(self.attempts)} attempts")

    def _move(self, happening: Happening) -> None:
        following = NEXT[self.state][happening]
        if following is None:
            raise IllegalTransition(f"{happening.name} in {self.state.name}")
        self.state = following


def usable(endpoint: EndpointState, model: str, now: float) -> bool:
    """Tell whether an endpoint takes an attempt now, by everything that scheduling would look at."""
    if endpoint.gone or endpoint.draining or endpoint.unreachable or model in endpoint.lost_models:
        return False
    return endpoint.in_flight < endpoint.places and endpoint.breaker.allow(now)


def busy(decision: Decision) -> bool:
    """Tell whether somebody was dropped only because it is full."""
    return any(reason == DropReason.SATURATED for _, reason in decision.dropped)
