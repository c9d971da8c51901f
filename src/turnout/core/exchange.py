"""The life of one accepted request: which attempt comes next, and which one outcome it ends with.

An exchange is synchronous. Its methods are named after what happened and return what to do next (`lifecycle` has both
sets and the table of legal transitions). Admission comes first and costs nothing while nobody waits. The loop follows
resilience §3: another endpoint at once, else the same one after a jittered pause when the failure allows it, else a
standby or relaxed one, else another model, within attempts, retry budget and deadline. A try elsewhere waits for the
budget and for a place, one at the same endpoint does not. After the commit point one more attempt may join the stream.
Every count, lease and predicted prefix entry taken for an attempt is given back by the one method that ends it.
"""

from __future__ import annotations

from typing import Final

from turnout.core.admission.gate import Entry, Gate, Room
from turnout.core.admission.queue import Ticket
from turnout.core.attempt import Attempt, end_attempt
from turnout.core.errors import RETRY, ErrorKind, Outcome
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.lifecycle import GiveUp, GoOn, Happening, Next, Open, Queued, State, Trouble, poisoned
from turnout.core.recovery.poison import is_death
from turnout.core.retry_loop import DEADLINE_MARGIN_S, RetryLoop, busy, usable
from turnout.core.scheduling.decision import Decision
from turnout.core.scheduling.holding import PATIENCE
from turnout.core.scheduling.pipeline import schedule
from turnout.core.scheduling.turnout import least_prefill_s
from turnout.core.scheduling.types import DropReason
from turnout.core.usage import Usage

_COMPLETED: Final = Outcome.COMPLETED
_COOLDOWN_S: Final = 2.0
_COOLDOWN_MAX_S: Final = 60.0
_OK_MAX: Final = 299  # an error inside a 200 is nothing that could be relayed as the engine's refusal
# What the engine said in these cases is not for the client: rubbish, or talk about our own credential (U5).
_POISONED: Final = GiveUp(Outcome.UPSTREAM_UNREACHABLE, code="poison_suspected")
_CREDENTIAL = (ErrorKind.AUTH_ERROR, ErrorKind.PAYMENT_REQUIRED)
NOT_AN_ANSWER = (ErrorKind.BAD_RESPONSE, *_CREDENTIAL)


class Exchange(RetryLoop):
    """One accepted request with all its attempts and its one outcome."""

    __slots__ = ()

    @property
    def gate(self) -> Gate | None:
        """The gate of its model."""
        return self._gate

    @property
    def waits(self) -> bool:
        """Whether it waits for a place or for the retry budget."""
        trouble = self.trouble
        return self.queued_at_s is not None or (trouble is not None and trouble.ticket is not None)

    @property
    def current(self) -> Attempt:
        """The latest attempt."""
        return self.attempts[-1]

    def begin(self, now: float, *, anonymous: bool = False, limited: bool = False) -> Next:
        """Let it enter, and schedule the first attempt.

        Args:
            now: monotonic seconds.
            anonymous: nobody in particular asks; all such requests together leave one place to the others (Q10).
            limited: the tenant may hold only so many places.

        """
        if self.state is not State.OPENED:
            raise self._illegal("begin")
        self._budget.exchange_started(now)
        gate = self._gate
        if gate is not None:
            ask = self.ask
            ask.may_hold = True
            ask.arrived_s = self.started_s
            ask.deadline_s = min(self.deadline_s, now + gate.wait_s)
            if limited or gate.queue.size or (anonymous and gate.anonymous >= gate.anonymous_max):
                return self._enter(gate, now)
            if anonymous:
                gate.anonymous += 1
                self._counted = True
        decision = self.decision = schedule(self.ask, self._pool, self._fleet, now, self._rng)
        if decision.picked is None:
            return GiveUp(_unroutable(decision)) if gate is None else self._enter(gate, now, decision)
        return self._open(decision.picked, "first", decision, now)

    def turn(self, now: float) -> Next | None:
        """Take a free place, when it is one for this request; None: it waits on."""
        trouble, gate = self.trouble, self._gate
        if trouble is None or trouble.ticket is None or gate is None:
            raise self._illegal("turn")
        ticket = trouble.ticket
        first = self.state is State.QUEUED and len(self.attempts) == trouble.before_model
        if not first and poisoned(self.attempts):
            self._leave(trouble, gate, now)
            return _POISONED
        if (first and not gate.may_serve(ticket)) or not (first or self._budget.has(now)):
            return None
        decision = schedule(self.ask, self._pool, self._fleet, now, self._rng)
        if decision.picked is None:
            if decision.held:
                self._hold_on(gate, ticket, decision)
            return None
        gate.serve(ticket)
        trouble.ticket = None
        trouble.queued_s += now - ticket.queued_s
        if first:
            self._hold(gate, ticket)
            return self._open(decision.picked, "first", decision, now)
        self._budget.take(now)
        if self.state is State.COMMITTED:
            return self._join(trouble, decision.picked, decision, now)
        return self._open(decision.picked, "other", decision, now)

    def queue_expired(self, now: float) -> GiveUp:
        """Stop waiting for a place: D6 has passed."""
        trouble, gate = self.trouble, self._gate
        if trouble is None or trouble.ticket is None or gate is None:
            raise self._illegal("queue_expired")
        ticket = trouble.ticket
        self._leave(trouble, gate, now)
        if self.state is State.COMMITTED:
            return GiveUp(Outcome.STREAM_INTERRUPTED)
        if self.attempts:
            return GiveUp(self._exhausted())
        return GiveUp(Outcome.QUEUE_EXPIRED, gate.retry_after_s(ticket.priority, self._room(None), now))

    def first_byte(self, now: float, attempt: Attempt | None = None) -> None:
        """Hear that the engine has finished the prompt of an attempt, the latest one unless said."""
        attempt = self._running("first_byte") if attempt is None else attempt
        if attempt.first_byte_s is None:
            attempt.first_byte_s = now
            attempt.endpoint.last_byte_at = now
            if attempt.seat is not None:
                attempt.seat.first_byte(now)

    def committed(self, attempt: Attempt | None = None) -> None:
        """Hear that bytes of an attempt went to the client: no other endpoint may answer unnoticed."""
        attempt = self._running("committed") if attempt is None else attempt
        self._move(Happening.COMMIT)
        attempt.committed = True

    def attempt_failed(
        self,
        kind: ErrorKind,
        now: float,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        attempt: Attempt | None = None,
        died: bool | None = None,
        busy: bool = False,
    ) -> Next:
        """End an attempt as failed and say what follows.

        Args:
            kind: why it failed.
            now: monotonic seconds.
            status: HTTP status of the engine's answer, None when it gave none.
            retry_after_s: what the answer asked for.
            attempt: the one that failed; the latest one unless said.
            died: whether its connection was lost with the request on it; None: as the kind says.
            busy: whether the endpoint delivers to others: that it was late here is no fault then (§2).

        """
        if attempt is None or not attempt.is_open:
            attempt = self._running("attempt_failed")
        end_attempt(attempt, now, kind, status, retry_after_s, busy=busy)
        attempt.died = is_death(kind) if died is None else died
        if status is not None and status > _OK_MAX and kind not in NOT_AN_ANSWER:
            self._answered = True
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s if self.retry_after_s is None else min(self.retry_after_s, retry_after_s)
        if kind is ErrorKind.RATE_LIMIT or (kind is ErrorKind.OVERLOADED and retry_after_s is not None):
            pause = _COOLDOWN_S if retry_after_s is None else retry_after_s
            attempt.endpoint.cooldown_until = now + min(max(pause, 1.0), _COOLDOWN_MAX_S)
        if RETRY[kind].unreachable:
            self._fleet.on_connect_failure(attempt.endpoint, now)
        if kind in _CREDENTIAL:
            attempt.endpoint.refused = True
            attempt.endpoint.cooldown_until = now + _COOLDOWN_MAX_S
        if kind is ErrorKind.MODEL_UNAVAILABLE:
            attempt.endpoint.lose(self.ask.model)
        if any(other.is_open for other in self.attempts):
            self.ask.tried = (*self.ask.tried, attempt.endpoint.name)
            return GoOn()
        if poisoned(self.attempts):
            return _POISONED
        if self.state is State.COMMITTED:
            self.ask.tried = (*self.ask.tried, attempt.endpoint.name)
            return GiveUp(Outcome.STREAM_INTERRUPTED)
        return self._after(attempt, kind, now, retry_after_s)

    def rescue(self, now: float, *, unable: tuple[str, ...] = (), other_models: bool = False) -> Open | Queued | None:
        """Open an attempt that joins the broken stream (R1): once, untried, standby included, within N1, N5 and D5.

        Args:
            now: monotonic seconds.
            unable: endpoints that could not go on from where this stream broke.
            other_models: whether a fallback model may, when no replica can.

        """
        if self.state is not State.COMMITTED or any(attempt.is_open for attempt in self.attempts):
            raise self._illegal("rescue")
        trouble = self._in_trouble()
        if trouble.resumed is not None or now + DEADLINE_MARGIN_S > self.deadline_s or poisoned(self.attempts):
            return None
        decision = None
        if self.attempts_left() > 0 and self._budget.has(now):
            self.ask.tried = (*self.ask.tried, *unable)
            self.ask.relax = True
            decision = schedule(self.ask, self._pool, self._fleet, now, self._rng)
            if decision.picked is not None:
                self._budget.take(now)
                return self._join(trouble, decision.picked, decision, now)
        if other_models:
            elsewhere = self._turn_to_next_model(now, unable)
            if elsewhere is not None and elsewhere.picked is not None:
                return self._join(trouble, elsewhere.picked, elsewhere, now)
        return self._wait_as_first(now) if decision is not None and busy(decision) else None

    def rejoin(self, now: float) -> Open | None:
        """Ask the endpoint of the rescue once more in another way: it refused the first one (R3)."""
        trouble = self._in_trouble()
        resumed = trouble.resumed
        if self.state is not State.COMMITTED or resumed is None or resumed.is_open:
            raise self._illegal("rejoin")
        if self.attempts_left() < 1 or now + DEADLINE_MARGIN_S > self.deadline_s or resumed.endpoint.gone:
            return None
        return self._join(trouble, resumed.endpoint, None, now) if self._budget.take(now) else None

    def _join(self, trouble: Trouble, endpoint: EndpointState, decision: Decision | None, now: float) -> Open:
        following = self._open(endpoint, "resume", decision, now)
        trouble.resumed = following.attempt
        following.attempt.committed = True
        return following

    def hedge(self, now: float) -> Attempt | None:
        """Open a duplicate of the attempt that is slow to begin (Z1, Z2): once, elsewhere, before the commit point."""
        trouble = self._in_trouble()
        if self.state is not State.ATTEMPTING or trouble.hedge is not None or self.attempts_left() < 1:
            return None
        if self._pool.pairs is not None:
            return None  # a duplicate of two legs would cost a prefill
        ask = self.ask
        slow = self._running("hedge")
        if now + DEADLINE_MARGIN_S > self.deadline_s or not self._budget.has(now):
            return None
        tried, ask.tried = ask.tried, (*ask.tried, slow.endpoint.name)
        ask.relax = False
        decision = schedule(ask, self._pool, self._fleet, now, self._rng)
        ask.tried = tried
        picked = decision.picked
        if picked is None or picked.in_flight >= picked.high_places or not self._budget.take(now):
            return None
        attempt = trouble.hedge = self._open(picked, "hedge", decision, now).attempt
        return attempt

    def hedge_lost(self, attempt: Attempt, now: float) -> None:
        """End the slower one of two attempts: it says nothing about its endpoint (Z3)."""
        end_attempt(attempt, now, ErrorKind.HEDGE_LOST)

    def wait_over(self, now: float) -> Next:
        """Go on after a wait: the same endpoint if it still may be used (N7), or the one the budget had to allow."""
        if self.state is not State.WAITING:
            raise self._illegal("wait_over")
        if now + DEADLINE_MARGIN_S > self.deadline_s:
            return GiveUp(self._exhausted())
        if poisoned(self.attempts):  # an endpoint may have gone while it waited
            return _POISONED
        endpoint = self.attempts[-1].endpoint
        if self.queued_at_s is None and usable(endpoint, self.ask.model, now):
            return self._open(endpoint, "same", None, now)
        return self._elsewhere(now) or self._last_resort(now)

    def completed(self, usage: Usage | None, now: float, status: int) -> None:
        """End the open attempt as a complete response, and with it the exchange."""
        attempt = self._running("completed")
        attempt.usage = usage
        if usage is not None and usage.tokens_in is not None:
            self._pool.measured(self.ask.prompt_bytes, usage.tokens_in)
        end_attempt(attempt, now, None, status)
        self.close(_COMPLETED, now)

    def close(self, outcome: Outcome, now: float, kind: ErrorKind = ErrorKind.CANCELLED) -> None:
        """End the exchange with its outcome; attempts that are still open end as `kind`, places are given back."""
        for attempt in self.attempts:
            if attempt.is_open:
                end_attempt(attempt, now, kind)
        self._move(Happening.CLOSE)
        self.outcome = outcome
        gate = self._gate
        if gate is not None:
            trouble = self.trouble
            if trouble is not None and trouble.ticket is not None:
                self._leave(trouble, gate, now)
            if self._counted or (trouble is not None and trouble.holds_share):
                self._give_share()
            self._owner = None  # exchange and owner name each other

    # -- admission ----------------------------------------------------------------------------------------------------

    def _enter(self, gate: Gate, now: float, decision: Decision | None = None) -> Next:
        """Ask at the gate, because there is no place, somebody waits, or the principal is limited."""
        assert self._owner is not None
        if self._counted:  # it was counted before it turned out that there is no place
            gate.anonymous -= 1
            self._counted = False
        applicant = self._owner.applicant()
        if decision is None:
            decision = self.decision = schedule(self.ask, self._pool, self._fleet, now, self._rng)
        verdict = gate.verdict(applicant, self._room(decision), now)
        if verdict is Entry.ADMIT and decision.held:  # no slot to wait in: bound at once
            self.ask.may_hold = False
            decision = self.decision = schedule(self.ask, self._pool, self._fleet, now, self._rng)
        if verdict is Entry.ADMIT and decision.picked is not None:
            self._hold(gate, applicant)
            return self._open(decision.picked, "first", decision, now)
        if isinstance(verdict, Entry):
            held = bool(decision.held) or (gate.holding > 0 and decision.picked is not None)
            ticket = gate.enter(applicant, self._owner, now, held=held, behind_s=_behind_s(decision))
            if decision.held == "cold_gate":
                gate.queue.step_aside(ticket, decision.retry_at)
            return self._wait_for_place(ticket)
        if self._pool.pairs is not None and verdict.outcome is Outcome.QUEUE_FULL:
            self._pool.pairs.rejected(decision)
        returns_s = self._pool.retry_after_s(now) if verdict.outcome is Outcome.NO_ENDPOINT else None
        return GiveUp(verdict.outcome, returns_s or verdict.retry_after_s)

    @staticmethod
    def _leave(trouble: Trouble, gate: Gate, now: float) -> None:
        """Wait no longer."""
        ticket = trouble.ticket
        assert ticket is not None  # every caller has looked
        trouble.queued_s += now - ticket.queued_s
        gate.leave(ticket)
        trouble.ticket = None

    @staticmethod
    def _hold_on(gate: Gate, ticket: Ticket, decision: Decision) -> None:
        """Keep a request that scheduling holds (once more): behind cheaper ones, or aside when only it is concerned."""
        if not ticket.held:
            ticket.held = True
            gate.holding += 1
        if ticket.aside:
            return
        if decision.held == "cold_gate":
            gate.queue.step_aside(ticket, decision.retry_at)
        else:
            gate.queue.move(ticket, _behind_s(decision))

    def _room(self, decision: Decision | None) -> Room:
        members = self._pool.members
        full = decision is None or busy(decision)
        picked = decision is not None and decision.picked is not None
        held = decision is not None and bool(decision.held)
        waited_for = self._gate is not None and self._gate.holding > 0
        return Room(
            routable=(picked,),
            fits=decision is None or ("", DropReason.NEVER_FITS) not in decision.dropped,
            anybody=full or picked or held,
            held=held,
            binds=(picked and waited_for) or (decision is not None and decision.held == "queue"),
            in_flight=sum(member.in_flight for member in members),
            capacity=sum(member.places for member in members if not member.gone),
        )


def _behind_s(decision: Decision) -> float:
    """How far behind its arrival a request waits: short prefills go first, nobody waits for ever (scheduling §5.2)."""
    if not decision.held and decision.policy != "turnout":
        return 0.0
    return least_prefill_s(decision) / PATIENCE


def _unroutable(decision: Decision) -> Outcome:
    """Name why nothing could be scheduled: all full is not the same as nobody there."""
    reasons = {str(reason) for _, reason in decision.dropped}
    return Outcome.SHED if "saturated" in reasons else Outcome.NO_ENDPOINT
