"""One request in the world: drives its exchange as the gateway's run does, and checks what may never happen.

A stream is deterministic here, so one that breaks is joined by a second attempt that repeats what was sent (R4).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from turnout.core.admission.gate import Applicant, request_cost
from turnout.core.attempt import Attempt
from turnout.core.errors import ErrorKind, Outcome
from turnout.core.exchange import Exchange
from turnout.core.fleet.health import PATIENCE_S, is_lost
from turnout.core.lifecycle import GiveUp, GoOn, Next, Open, Queued, State
from turnout.core.retry_loop import Route
from turnout.core.scheduling.ask import Ask
from turnout.core.usage import Usage
from turnout.sim.world.clock import Timer
from turnout.sim.world.engine import Generation
from turnout.sim.world.router import MODEL, Router

_LATE_S = 0.1
_LOOK_S = 0.25


class Asked(msgspec.Struct, frozen=True):
    """What a client wants. `patience_s`: it leaves after that."""

    number: int
    tenant: str
    tokens: int
    keys: tuple[int, ...] = ()
    priority: int = 1
    patience_s: float | None = None

    @property
    def anonymous(self) -> bool:
        """Whether nobody in particular asks."""
        return not self.tenant


class Run:
    """Implements what an exchange asks of its owner, and what an engine tells its listener."""

    __slots__ = (
        "_again",
        "_deadline",
        "_generation",
        "_looker",
        "_on_end",
        "_patience",
        "_router",
        "_waiter",
        "asked",
        "ended_s",
        "exchange",
        "last_byte_s",
        "outcome",
        "queued_s",
        "sent",
        "started_s",
        "ttft_s",
    )

    def __init__(self, router: Router, asked: Asked, on_end: Callable[[Run], None]) -> None:
        self._router = router
        self._on_end = on_end
        self.asked = asked
        self.started_s = self.last_byte_s = router.clock.now
        self.queued_s: float | None = None
        self.ttft_s: float | None = None
        self.outcome: Outcome | None = None
        self.ended_s = 0.0
        self.ended_s = 0.0
        self.sent = 0
        self._again = 0
        self._generation: Generation | None = None
        self._waiter: Timer | None = None
        self._looker: Timer | None = None
        ask = Ask(model=MODEL, keys=list(asked.keys), tokens=256, estimate_floor=200, relax=True)
        settings = router.settings
        self.exchange = Exchange(
            ask,
            router.pool,
            router.fleet,
            settings.retry,
            router.budget,
            router.rng,
            self.started_s,
            settings.timeout.total_s,
            router.gate,
            self,
        )
        self._deadline = router.clock.at(self.exchange.deadline_s, self._deadline_passed)
        self._patience: Timer | None = None

    def begin(self) -> None:
        """Ask."""
        router = self._router
        router.runs.add(self)
        if self.asked.patience_s is not None:
            self._patience = router.clock.after(self.asked.patience_s, lambda: self._close(Outcome.CLIENT_GONE))
        limited = router.gate.limited and not self.asked.anonymous
        self._follow(self.exchange.begin(router.clock.now, anonymous=self.asked.anonymous, limited=limited))

    # -- owner of an exchange -----------------------------------------------------------------------------------------

    def applicant(self) -> Applicant:
        """Say who asks."""
        asked = self.asked
        return Applicant(
            tenant=asked.tenant,
            cost=request_cost(200, asked.tokens),
            deadline_s=self.exchange.deadline_s,
            anonymous=asked.anonymous,
            priority=asked.priority,
        )

    def has_next_model(self) -> bool:
        """There is one model only."""
        return False

    def next_model(self) -> Route | None:
        """There is one model only."""
        return None

    def turn(self) -> bool:
        """Take a free place; False: it was none for this request."""
        following = self.exchange.turn(self._router.clock.now)
        if following is None:
            return False
        self._follow(following)
        return True

    def expire(self) -> None:
        """The time in the queue is over."""
        if self.outcome is None:
            self._follow(self.exchange.queue_expired(self._router.clock.now))

    # -- listener of an engine ----------------------------------------------------------------------------------------

    def first_token(self) -> None:
        """The prompt is done."""
        now = self._router.clock.now
        self.last_byte_s = now
        self.exchange.first_byte(now)
        if self._router.gate.holding:
            self._router.place_freed()
        if self.exchange.state is State.ATTEMPTING:
            self.exchange.committed()
            self.ttft_s = now - self.started_s
        self._count()

    def token(self) -> None:
        """One more token."""
        self.last_byte_s = self._router.clock.now
        self._count()

    def completed(self) -> None:
        """The answer is complete."""
        if self.sent != self.asked.tokens:
            told = f"{self.sent} of {self.asked.tokens} tokens"
            self._router.violation(f"request {self.asked.number} got {told} as a whole answer")
        self._generation = None
        self.exchange.completed(Usage(256, self.asked.tokens), self._router.clock.now, 200)
        self._end(Outcome.COMPLETED)

    def failed(self, kind: ErrorKind, status: int | None) -> None:
        """There will be no complete answer from this engine."""
        if self.outcome is not None or self._generation is None:
            return
        router = self._router
        self._generation = None
        name = self.exchange.current.endpoint.name
        following = self.exchange.attempt_failed(kind, router.clock.now, status=status)
        if kind is ErrorKind.CONNECT_ERROR:
            router.engine_died(name)
        if isinstance(following, GiveUp) and following.outcome is Outcome.STREAM_INTERRUPTED:
            following = self.exchange.rescue(router.clock.now) or following
        self._follow(following)
        router.place_freed()

    # -- carrying out -------------------------------------------------------------------------------------------------

    def _follow(self, following: Next) -> None:
        router = self._router
        if isinstance(following, Open):
            self._open(following.attempt)
        elif isinstance(following, Queued):
            self.queued_s = router.clock.now
        elif isinstance(following, GiveUp):
            self._close(following.outcome)
        elif not isinstance(following, GoOn):
            self._waiter = router.clock.at(following.until_s, self._wait_over)

    def _open(self, attempt: Attempt) -> None:
        router, endpoint = self._router, attempt.endpoint
        if endpoint.gone or endpoint.draining or endpoint.unreachable:
            router.violation(f"request {self.asked.number} opened on {endpoint.name}, which is inactive")
        if endpoint.in_flight > endpoint.max_in_flight:
            router.violation(f"{endpoint.name} holds {endpoint.in_flight} of {endpoint.max_in_flight}")
        if len(self.exchange.attempts) > router.settings.retry.attempts_per_model:
            router.violation(f"request {self.asked.number} has {len(self.exchange.attempts)} attempts")
        self.last_byte_s = router.clock.now
        self._again = self.sent
        self._generation = router.engines[endpoint.name].request(self, self.asked.tokens)
        if self._looker is None:
            self._looker = router.clock.after(_LOOK_S, self._look)

    def _count(self) -> None:
        if self._again:  # suppressed: the client has it
            self._again -= 1
        else:
            self.sent += 1

    def _look(self) -> None:
        """What the gateway's tick does: the timeouts of an open attempt (D2, D2a, D4, R9)."""
        self._looker = None
        if self.outcome is not None:
            return
        router = self._router
        generation = self._generation
        if generation is not None:
            timeouts, silent_s = router.settings.timeout, router.clock.now - self.last_byte_s
            committed = self.exchange.state is State.COMMITTED
            limit = timeouts.stall_s if committed else timeouts.first_token_failover_s
            kind = ErrorKind.TIMEOUT_STALL if committed else ErrorKind.TIMEOUT_FIRST_TOKEN
            if is_lost(self.exchange.current.endpoint):
                limit = PATIENCE_S
            if silent_s >= limit:
                generation.cancel()
                self.failed(kind, None)
        if self.outcome is None:
            self._looker = router.clock.after(_LOOK_S, self._look)

    def _wait_over(self) -> None:
        self._waiter = None
        if self.outcome is None:
            self._follow(self.exchange.wait_over(self._router.clock.now))

    def _deadline_passed(self) -> None:
        self._close(Outcome.DEADLINE_EXCEEDED)

    def _close(self, outcome: Outcome) -> None:
        if self.outcome is not None:
            return
        if self._generation is not None:
            self._generation.cancel()
            self._generation = None
        self.exchange.close(outcome, self._router.clock.now)
        self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        router = self._router
        if self.outcome is not None:
            router.violation(f"request {self.asked.number} ended as {self.outcome} and as {outcome}")
            return
        self.outcome = outcome
        self.ended_s = router.clock.now
        for timer in (self._waiter, self._looker, self._deadline, self._patience):
            if timer is not None:
                timer.cancel()
        if router.clock.now > self.exchange.deadline_s + _LATE_S:
            router.violation(f"request {self.asked.number} outlived its deadline")
        if router.gate.queue.size > 3 * router.settings.admission.queue_max:
            router.violation(f"{router.gate.queue.size} requests wait")
        router.runs.discard(self)
        self._on_end(self)
        router.place_freed()
