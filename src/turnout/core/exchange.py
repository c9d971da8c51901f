"""The life of one accepted request: which attempt comes next, and which one outcome it ends with.

An exchange is synchronous. Its methods are named after what happened and return what to do next:

    OPENED ──begin──► ATTEMPTING ──committed──► COMMITTED ──► CLOSED
                        │     ▲                                 ▲
                  attempt_failed  wait_over                     │
                        ▼     │                                 │
                       WAITING ────────────── close ────────────┘

`_NEXT` holds every legal transition; anything else raises and changes nothing. The loop follows resilience §3: another
endpoint at once, else the same one after a jittered pause when the failure allows it, else a standby or relaxed one,
within attempts, retry budget and deadline. Every count, lease and predicted prefix entry taken for an attempt is
given back by the one method that ends it.
"""

from __future__ import annotations

import enum
import msgspec

from turnout.core.errors import RETRY, UNCOUNTED, ErrorKind, Outcome
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.kit.rng import Rng
from turnout.core.options import Retry
from turnout.core.prefix.index import Placement
from turnout.core.retry_budget import RetryBudget
from turnout.core.scheduling.pipeline import schedule
from turnout.core.scheduling.types import Ask, Decision
from turnout.core.types import Usage

_BACKOFF_BASE_S = 0.25
_DEADLINE_MARGIN_S = 0.25
_COOLDOWN_S = 2.0
_COOLDOWN_MAX_S = 60.0
# What the engine said in these cases is not for the client: rubbish, or talk about our own credential (U5).
_NOT_AN_ANSWER = (ErrorKind.BAD_RESPONSE, ErrorKind.AUTH_ERROR, ErrorKind.PAYMENT_REQUIRED)


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
    (State.ATTEMPTING, None, None, State.CLOSED),  # WAITING
    (None, None, None, State.CLOSED),  # COMMITTED
    (None, None, None, None),  # CLOSED
)


class IllegalTransition(RuntimeError):
    """Something happened that cannot happen in this state: a bug of the caller."""


class Attempt:
    """One try on one endpoint, and what it holds while it is open."""

    __slots__ = (
        "committed",
        "ended_s",
        "endpoint",
        "epoch",
        "error_kind",
        "first_byte_s",
        "http_status",
        "kind",
        "no",
        "placement",
        "started_s",
        "tokens",
        "uncached",
        "usage",
    )

    def __init__(self, no: int, endpoint: EndpointState, kind: str, started_s: float) -> None:
        self.no = no
        self.endpoint = endpoint
        self.kind = kind
        self.started_s = started_s
        self.ended_s = 0.0
        self.first_byte_s: float | None = None
        self.error_kind: ErrorKind | None = None
        self.http_status: int | None = None
        self.committed = False
        self.usage: Usage | None = None
        self.tokens = 0
        self.uncached = 0
        self.epoch = 0
        self.placement: Placement | None = None

    @property
    def counted(self) -> bool:
        """Tell whether the result says something about the route (ledger §3)."""
        return self.error_kind not in UNCOUNTED


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
        "retry_after_s",
        "started_s",
        "state",
    )

    def __init__(  # noqa: PLR0913 - an exchange is made of exactly these
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
        self._answered = False

    @property
    def current(self) -> Attempt:
        """The latest attempt."""
        return self.attempts[-1]

    def begin(self, now: float) -> Next:
        """Schedule the first attempt."""
        self._budget.exchange_started(now)
        decision = self.decision = schedule(self.ask, self._pool, self._fleet, now, self._rng)
        if decision.picked is None:
            return GiveUp(_unroutable(decision))
        return self._open(decision.picked, "first", decision, now)

    def first_byte(self, now: float) -> None:
        """Hear that the engine has finished the prompt of the current attempt."""
        attempt = self.attempts[-1]
        if attempt.first_byte_s is None:
            attempt.first_byte_s = now
            attempt.endpoint.first_byte(attempt.uncached)

    def committed(self) -> None:
        """Hear that bytes of the current attempt went to the client: no other endpoint may answer unnoticed."""
        self._move(Happening.COMMIT)
        self.attempts[-1].committed = True

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
        attempt = self.attempts[-1]
        self._end(attempt, kind, now, status)
        if status is not None and kind not in _NOT_AN_ANSWER:
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
        """Try the same endpoint again after the pause, if it still may be used."""
        last = self.attempts[-1]
        if last.endpoint.draining or now + _DEADLINE_MARGIN_S > self.deadline_s:
            return GiveUp(self._exhausted())
        return self._open(last.endpoint, "same", None, now)

    def completed(self, usage: Usage | None, now: float, status: int) -> None:
        """End the current attempt as a complete response, and with it the exchange."""
        attempt = self.attempts[-1]
        attempt.usage = usage
        self._end(attempt, None, now, status)
        self.close(Outcome.COMPLETED, now)

    def close(self, outcome: Outcome, now: float, kind: ErrorKind = ErrorKind.CANCELLED) -> None:
        """End the exchange with its outcome; an attempt that is still open ends as `kind`."""
        if self.attempts and not self.attempts[-1].ended_s:
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
        self.ask.relax = False
        decision = schedule(self.ask, self._pool, self._fleet, now, self._rng)
        if decision.picked is not None and self._budget.take(now):
            return self._open(decision.picked, "other", decision, now)
        pause = self._pause(rule.same, now, retry_after_s)
        if pause is not None and self._budget.take(now):
            self._same_tries += 1
            self._move(Happening.PAUSE)
            return Wait(now + pause)
        self.ask.relax = True
        decision = schedule(self.ask, self._pool, self._fleet, now, self._rng)
        if decision.picked is not None and self._budget.take(now):
            return self._open(decision.picked, "standby" if decision.picked.standby else "relaxed", decision, now)
        return GiveUp(self._exhausted())

    def _pause(self, may_repeat: bool, now: float, retry_after_s: float | None) -> float | None:  # noqa: FBT001 - a fact
        """Return how long to wait before asking the same endpoint again; None when it may not be asked (N2, N4, Y1)."""
        elsewhere = any(e.name not in self.ask.tried for e in self._pool.members)
        if not may_repeat or self._same_tries >= (1 if elsewhere else 2):
            return None
        pause = self._rng.random() * _BACKOFF_BASE_S * 2**self._same_tries
        if retry_after_s is not None:
            if retry_after_s > self._options.after_max_s:
                return None
            pause = max(pause, retry_after_s)
        return pause if now + pause + _DEADLINE_MARGIN_S < self.deadline_s else None

    def _open(self, endpoint: EndpointState, kind: str, decision: Decision | None, now: float) -> Open:
        self._move(Happening.ATTEMPT)
        attempt = Attempt(len(self.attempts) + 1, endpoint, kind, now)
        ask = self.ask
        attempt.tokens = ask.tokens
        attempt.uncached = ask.tokens
        if decision is not None:
            self.decision = decision
            attempt.uncached = decision.uncached
        attempt.epoch = endpoint.breaker.opened(now)
        endpoint.opened(attempt.tokens, attempt.uncached)
        if ask.keys and endpoint.bit:
            attempt.placement = self._fleet.index.record(ask.keys, endpoint.bit, now)
        self.attempts.append(attempt)
        return Open(attempt)

    def _end(self, attempt: Attempt, kind: ErrorKind | None, now: float, status: int | None) -> None:
        if attempt.ended_s:
            raise IllegalTransition(f"attempt {attempt.no} ended twice")
        attempt.ended_s = now
        attempt.error_kind = kind
        attempt.http_status = status
        endpoint = attempt.endpoint
        if attempt.first_byte_s is None:
            endpoint.first_byte(attempt.uncached)
            if kind is not None and attempt.placement is not None:
                self._fleet.index.rollback(attempt.placement)
        attempt.placement = None
        endpoint.ended(attempt.tokens)
        if kind is None:
            endpoint.breaker.success(attempt.epoch, now)
        elif RETRY[kind].fault:
            endpoint.breaker.fault(attempt.epoch, now)
        else:
            endpoint.breaker.neutral(attempt.epoch, now)

    def _exhausted(self) -> Outcome:
        """N9: the last upstream answer if there is one, else an ending by the last kind."""
        kind = self.attempts[-1].error_kind
        if kind in (ErrorKind.AUTH_ERROR, ErrorKind.PAYMENT_REQUIRED):
            return Outcome.UPSTREAM_CREDENTIAL
        if self._answered:
            return Outcome.UPSTREAM_ANSWERED
        if kind in (ErrorKind.TIMEOUT_FIRST_TOKEN, ErrorKind.TIMEOUT_RESPONSE, ErrorKind.TIMEOUT_CONNECT):
            return Outcome.UPSTREAM_TIMEOUT
        if kind is ErrorKind.BAD_RESPONSE:
            return Outcome.UPSTREAM_INVALID
        return Outcome.UPSTREAM_UNREACHABLE

    def _move(self, happening: Happening) -> None:
        following = _NEXT[self.state][happening]
        if following is None:
            raise IllegalTransition(f"{happening.name} in {self.state.name}")
        self.state = following


def _unroutable(decision: Decision) -> Outcome:
    """Name why nothing could be scheduled: all full is not the same as nobody there."""
    reasons = {str(reason) for _, reason in decision.dropped}
    return Outcome.SHED if "saturated" in reasons else Outcome.NO_ENDPOINT
