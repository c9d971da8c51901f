"""The life of one accepted request: which attempt comes next, and which one outcome it ends with.

An exchange is synchronous. Its methods are named after what happened and return what to do next:

    OPENED ──begin──► ATTEMPTING ──committed──► COMMITTED ──► CLOSED
                        │     ▲                                 ▲
                  attempt_failed  wait_over                     │
                        ▼     │                                 │
                       WAITING ────────────── close ────────────┘

`_NEXT` holds every legal transition; anything else raises and changes nothing. The loop follows resilience §3: another
endpoint at once, else the same one after a jittered pause when the failure allows it, else a standby or relaxed one,
within attempts, retry budget and deadline. A try elsewhere waits for the budget, one at the same endpoint does not.
Every count, lease and predicted prefix entry taken for an attempt is given back by the one method that ends it.
"""

from __future__ import annotations

import enum

import msgspec

from turnout.core.attempt import Attempt
from turnout.core.errors import RETRY, ErrorKind, IllegalTransition, Outcome
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.kit.rng import Rng
from turnout.core.options import Retry
from turnout.core.retry_budget import RetryBudget
from turnout.core.scheduling.pipeline import schedule
from turnout.core.scheduling.seats import take_seat, take_seat_again
from turnout.core.scheduling.types import Ask, Decision
from turnout.core.types import Usage

_BACKOFF_BASE_S = 0.25
_DEADLINE_MARGIN_S = 0.25
_COOLDOWN_S = 2.0
_COOLDOWN_MAX_S = 60.0
_BUDGET_LOOK_S = 0.1  # N5: how often an exchange that waits for the budget looks again
_BUDGET_WAIT_MAX_S = 30.0  # D6
_OK_MAX = 299  # an error inside a 200 is nothing that could be relayed as the engine's refusal
_TIMEOUTS = (
    ErrorKind.TIMEOUT_FIRST_TOKEN,
    ErrorKind.TIMEOUT_RESPONSE,
    ErrorKind.TIMEOUT_CONNECT,
    ErrorKind.TIMEOUT_SEND,
)
# What the engine said in these cases is not for the client: rubbish, or talk about our own credential (U5).
NOT_AN_ANSWER = (ErrorKind.BAD_RESPONSE, ErrorKind.AUTH_ERROR, ErrorKind.PAYMENT_REQUIRED)


class State(enum.IntEnum):
    """Where an exchange stands."""

    OPENED = 0
    ATTEMPTING = 1
    WAITING = 2
    COMMITTED = 3
    CLOSED = 4


class Happening(enum.IntEnum):
    """What can happen to an exchange."""

    ATTEMPT = 0
    PAUSE = 1
    COMMIT = 2
    CLOSE = 3


# One row per state, one column per happening; None is illegal.
_NEXT: tuple[tuple[State | None, ...], ...] = (
    # ATTEMPT           PAUSE          COMMIT           CLOSE
    (State.ATTEMPTING, None, None, State.CLOSED),  # OPENED
    (State.ATTEMPTING, State.WAITING, State.COMMITTED, State.CLOSED),  # ATTEMPTING
    (State.ATTEMPTING, State.WAITING, None, State.CLOSED),  # WAITING
    (None, None, None, State.CLOSED),  # COMMITTED
    (None, None, None, None),  # CLOSED
)


class Open(msgspec.Struct, frozen=True, gc=False):
    """Open this attempt."""

    attempt: Attempt


class Wait(msgspec.Struct, frozen=True, gc=False):
    """Come back with `wait_over` at this instant (monotonic seconds)."""

    until_s: float


class GiveUp(msgspec.Struct, frozen=True, gc=False):
    """No attempt can follow: answer with this outcome (`upstream_answered`: with the last upstream answer)."""

    outcome: Outcome


Next = Open | Wait | GiveUp


class Exchange:
    """One accepted request with all its attempts and its one outcome."""

    __slots__ = (
        "_answered",
        "_budget",
        "_fleet",
        "_options",
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

    @property
    def current(self) -> Attempt:
        """The latest attempt."""
        return self.attempts[-1]

    def begin(self, now: float) -> Next:
        """Schedule the first attempt."""
        if self.state is not State.OPENED:
            raise self._illegal("begin")
        self._budget.exchange_started(now)
        decision = self.decision = schedule(self.ask, self._pool, self._fleet, now, self._rng)
        if decision.picked is None:
            return GiveUp(_unroutable(decision))
        return self._open(decision.picked, "first", decision, now)

    def first_byte(self, now: float) -> None:
        """Hear that the engine has finished the prompt of the current attempt."""
        attempt = self._running("first_byte")
        if attempt.first_byte_s is None:
            attempt.first_byte_s = now
            if attempt.seat is not None:
                attempt.seat.first_byte(now)

    def committed(self) -> None:
        """Hear that bytes of the current attempt went to the client: no other endpoint may answer unnoticed."""
        attempt = self._running("committed")
        self._move(Happening.COMMIT)
        attempt.committed = True

    def attempt_failed(
        self, kind: ErrorKind, now: float, *, status: int | None = None, retry_after_s: float | None = None
    ) -> Next:
        """End the current attempt as failed and say what follows.

        Args:
            kind: why it failed.
            now: monotonic seconds.
            status: HTTP status of the engine's answer, None when it gave none.
            retry_after_s: what the answer asked for.

        """
        attempt = self._running("attempt_failed")
        self._end(attempt, kind, now, status, retry_after_s)
        if status is not None and status > _OK_MAX and kind not in NOT_AN_ANSWER:
            self._answered = True
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s if self.retry_after_s is None else min(self.retry_after_s, retry_after_s)
        if kind is ErrorKind.RATE_LIMIT or (kind is ErrorKind.OVERLOADED and retry_after_s is not None):
            pause = _COOLDOWN_S if retry_after_s is None else retry_after_s
            attempt.endpoint.cooldown_until = now + min(max(pause, 1.0), _COOLDOWN_MAX_S)
        if RETRY[kind].unreachable:
            self._fleet.on_connect_failure(attempt.endpoint, now)
        if kind is ErrorKind.MODEL_UNAVAILABLE:
            attempt.endpoint.lose(self.ask.model)
        if self.state is State.COMMITTED:
            return GiveUp(Outcome.STREAM_INTERRUPTED)
        return self._after(attempt, kind, now, retry_after_s)

    def wait_over(self, now: float) -> Next:
        """Go on after a wait: the same endpoint if it still may be used (N7), or the one the budget had to allow."""
        if self.state is not State.WAITING:
            raise self._illegal("wait_over")
        if now + _DEADLINE_MARGIN_S > self.deadline_s:
            return GiveUp(self._exhausted())
        endpoint = self.attempts[-1].endpoint
        if self.queued_at_s is None and _usable(endpoint, self.ask.model, now):
            return self._open(endpoint, "same", None, now)
        return self._elsewhere(now) or self._last_resort(now)

    def completed(self, usage: Usage | None, now: float, status: int) -> None:
        """End the current attempt as a complete response, and with it the exchange."""
        attempt = self._running("completed")
        attempt.usage = usage
        self._end(attempt, None, now, status)
        self.close(Outcome.COMPLETED, now)

    def close(self, outcome: Outcome, now: float, kind: ErrorKind = ErrorKind.CANCELLED) -> None:
        """End the exchange with its outcome; an attempt that is still open ends as `kind`."""
        if self.attempts and self.attempts[-1].is_open:
            self._end(self.attempts[-1], kind, now, None)
        self._move(Happening.CLOSE)
        self.outcome = outcome

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _after(self, attempt: Attempt, kind: ErrorKind, now: float, retry_after_s: float | None) -> Next:
        rule, options = RETRY[kind], self._options
        tries = min(options.attempts, options.attempts_per_model)
        if not rule.other or len(self.attempts) >= tries or now + _DEADLINE_MARGIN_S > self.deadline_s:
            return GiveUp(self._exhausted())
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
        if picked is None:
            return GiveUp(self._exhausted())
        return self._open_or_queue(picked, "standby" if picked.standby else "relaxed", decision, now)

    def _open_or_queue(self, endpoint: EndpointState, kind: str, decision: Decision, now: float) -> Next:
        if self._budget.take(now):
            return self._open(endpoint, kind, decision, now)
        return GiveUp(self._exhausted()) if kind == "relaxed" else self._queue(now)

    def _queue(self, now: float) -> Next:
        """N5: a try elsewhere waits for the budget, so that losing one endpoint of many costs no client an error."""
        if self.queued_at_s is None:
            self.queued_at_s = now
        until_s = now + _BUDGET_LOOK_S
        if until_s > self.queued_at_s + _BUDGET_WAIT_MAX_S or until_s + _DEADLINE_MARGIN_S > self.deadline_s:
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
        standby = any(e.standby and e.name not in tried and _usable(e, self.ask.model, now) for e in self._pool.members)
        if not may_repeat or self._same_tries >= (1 if standby else 2):
            return None
        pause = self._rng.random() * _BACKOFF_BASE_S * 2**self._same_tries
        if retry_after_s is not None:
            if retry_after_s > self._options.after_max_s:
                return None
            pause = max(pause, retry_after_s)
        if not endpoint.breaker.allow(now + pause):
            return None
        return pause if now + pause + _DEADLINE_MARGIN_S < self.deadline_s else None

    def _open(self, endpoint: EndpointState, kind: str, decision: Decision | None, now: float) -> Open:
        self._move(Happening.ATTEMPT)
        self.queued_at_s = None
        attempt = Attempt(len(self.attempts) + 1, endpoint, kind, now)
        attempt.epoch = endpoint.breaker.opened(now)
        if decision is not None:
            self.decision = decision
            attempt.seat = take_seat(decision, self.ask, self._pool, self._fleet, now)
        else:
            attempt.seat = take_seat_again(endpoint, self.ask, self._pool, self._fleet, now)
        self.attempts.append(attempt)
        return Open(attempt)

    def _end(
        self, attempt: Attempt, kind: ErrorKind | None, now: float, status: int | None, open_s: float | None = None
    ) -> None:
        attempt.is_open = False
        attempt.ended_s = now
        attempt.error_kind = kind
        attempt.http_status = status
        endpoint = attempt.endpoint
        usage = attempt.usage
        if attempt.seat is None:
            raise self._illegal("end of an attempt that took no seat")
        if usage is None:
            attempt.seat.ended(now, failed=kind is not None, reports=False)
        else:
            if usage.tokens_in is not None:
                self._pool.measured(self.ask.prompt_bytes, usage.tokens_in)
            attempt.seat.ended(now, failed=kind is not None, tokens_out=usage.tokens_out, cached=usage.tokens_cached)
        if kind is None:
            endpoint.breaker.success(attempt.epoch, now)
        elif RETRY[kind].fault:
            endpoint.breaker.fault(attempt.epoch, now, open_s)
        else:
            endpoint.breaker.neutral(attempt.epoch, now)

    def _exhausted(self) -> Outcome:
        """N9: the last upstream answer if there is one, else an ending by the last kind."""
        last = self.attempts[-1]
        kind = last.error_kind
        if kind in (ErrorKind.AUTH_ERROR, ErrorKind.PAYMENT_REQUIRED):
            return Outcome.UPSTREAM_CREDENTIAL
        if self._answered:
            return Outcome.UPSTREAM_ANSWERED
        if kind in _TIMEOUTS:
            return Outcome.UPSTREAM_TIMEOUT
        if kind is ErrorKind.BAD_RESPONSE or last.http_status is not None:
            return Outcome.UPSTREAM_INVALID
        return Outcome.UPSTREAM_UNREACHABLE

    def _running(self, event: str) -> Attempt:
        """Return the attempt that is open; an event of an attempt that is not is a bug of the caller."""
        if self.attempts:
            attempt = self.attempts[-1]
            if attempt.is_open:
                return attempt
        raise self._illegal(event)

    def _illegal(self, event: str) -> IllegalTransition:
        return IllegalTransition(f"{event} in {self.state.name} with {len(self.attempts)} attempts")

    def _move(self, happening: Happening) -> None:
        following = _NEXT[self.state][happening]
        if following is None:
            raise IllegalTransition(f"{happening.name} in {self.state.name}")
        self.state = following


def _usable(endpoint: EndpointState, model: str, now: float) -> bool:
    """Tell whether an endpoint takes an attempt now, by everything that scheduling would look at."""
    if endpoint.gone or endpoint.draining or endpoint.unreachable or model in endpoint.lost_models:
        return False
    return endpoint.in_flight < endpoint.max_in_flight and endpoint.breaker.allow(now)


def _unroutable(decision: Decision) -> Outcome:
    """Name why nothing could be scheduled: all full is not the same as nobody there."""
    reasons = {str(reason) for _, reason in decision.dropped}
    return Outcome.SHED if "saturated" in reasons else Outcome.NO_ENDPOINT
