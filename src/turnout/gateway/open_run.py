"""An accepted request while it is open: what is known of it, and each way in which it can end.

Whatever ends it, there is one outcome, one fact for ledger and metrics, and everything it held is given back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from turnout.core.admission.gate import Gate
from turnout.core.admission.queue import Ticket
from turnout.core.errors import ENDINGS, ErrorKind, Outcome
from turnout.core.exchange import Exchange
from turnout.core.lifecycle import State
from turnout.core.request import Request
from turnout.dialects.dialect import DIALECTS
from turnout.dialects.envelope import of_outcome
from turnout.gateway import answers, replies
from turnout.gateway.advice import advice
from turnout.gateway.asking import Asked
from turnout.gateway.extra import Extra, ended
from turnout.gateway.facts import call_fact
from turnout.gateway.prepare import Prepared
from turnout.gateway.principals import Principal
from turnout.gateway.rescue import Rescue
from turnout.gateway.response import AttemptResponse
from turnout.gateway.sessions import session_of
from turnout.gateway.wording import too_long
from turnout.http.head import Head
from turnout.http.response_head import ResponseHead
from turnout.http.server import Connection

if TYPE_CHECKING:
    from turnout.gateway.run import Run
    from turnout.gateway.service import Gateway

NEVER: Final = float("inf")
COMPLETED: Final = Outcome.COMPLETED


class OpenRun(Asked):
    """The state of a run and its endings; `Run` adds how it gets there."""

    __slots__ = (
        "_answer",
        "_ticket",
        "_wait",
        "asked_model",
        "call_id",
        "catalogue",
        "chunked",
        "client",
        "clock",
        "decide_s",
        "dialect",
        "exchange",
        "extra",
        "gate",
        "gateway",
        "head_sent",
        "hedged",
        "models_tried",
        "next_at_s",
        "outcome",
        "request_id",
        "rescue",
        "response",
        "rival",
        "started_ms",
        "started_s",
        "status",
    )

    def __init__(
        self, gateway: Gateway, client: Connection, head: Head, request: Request, principal: Principal
    ) -> None:
        super().__init__(request, head.prepared, principal, gateway.fleet.scheduling.session_keys)
        self.gateway = gateway
        self.catalogue = gateway.catalogue  # a reload must not change the rules of what is open
        self.clock = gateway.clock
        self.client = client
        self.dialect = DIALECTS[request.dialect]
        self.chunked = head.version_minor == 1
        self.started_s = self.clock()
        self.started_ms = gateway.now_ms()
        self.call_id = gateway.next_id(self.started_ms)
        self.request_id = self.prepared.client_id or self.call_id.encode()
        self.asked_model = ""
        self.exchange: Exchange | None = None
        self.extra: Extra | None = None
        self.response: AttemptResponse | None = None
        self.outcome: Outcome | None = None
        self.status = 0
        self.decide_s = 0.0
        self.head_sent = False
        self.next_at_s = NEVER
        self._answer: tuple[ResponseHead, bytes | None] | None = None
        self._wait: asyncio.TimerHandle | None = None
        self._ticket: Ticket | None = None
        self.gate: Gate = None  # type: ignore[assignment]  # set as the exchange opens
        self.hedged = False
        self.rival: AttemptResponse | None = None
        self.rescue: Rescue | None = None
        self.models_tried: tuple[str, ...] = ()

    def reread(self, prepared: Prepared) -> None:
        """Take another reading of the head: members of the body may say what headers say."""
        self.prepared = prepared
        self.session = session_of(prepared, self.request, self.gateway.fleet.scheduling.session_keys)

    def client_gone(self) -> None:
        """Close the engine's connection at once: nobody waits for the answer (W7)."""
        if self.outcome is not None or (self.response is not None and self.response.ended_by_client()):
            return
        self._stop_attempt()
        self.status = 499
        self._close_exchange(Outcome.CLIENT_GONE)
        self._end(Outcome.CLIENT_GONE, self.clock())
        if self.exchange is not None:  # who left while it waited for a vector or an equal request held no place
            self.place_freed()

    def place_freed(self) -> None:
        """Wake who waits for the place that this run has given back."""
        if self.gate.queue.size:
            self.gateway.recovery.doors.wake(self.gate, self.clock())

    def client_paused(self) -> None:
        """Pass the client's pace on to the engine."""
        if self.response is not None:
            self.response.pause()

    def client_resumed(self) -> None:
        """Let the engine go on."""
        if self.response is not None:
            self.response.resume()

    def interrupt(self, outcome: Outcome, kind: ErrorKind) -> None:
        """End the exchange from our side: deadline or shutdown."""
        if self.outcome is not None:
            return
        self._stop_attempt()
        if self.head_sent or (self.response is not None and self.response.committed):
            self._end_in_band(outcome, kind)
        else:
            self._close_exchange(outcome, kind)
            self.refuse(outcome, replies.MESSAGES[outcome])

    @property
    def _exchange(self) -> Exchange:
        assert self.exchange is not None  # every caller runs after begin() opened it
        return self.exchange

    def _relay_answer(self, head: ResponseHead, body: bytes | None) -> None:
        self.status = head.status
        answer = replies.relayed_refusal(self, head, body)
        self._close_exchange(Outcome.UPSTREAM_ANSWERED)
        self.client.write(answer)
        self._end(Outcome.UPSTREAM_ANSWERED, self.clock())
        self.client.finish()

    def _refuse_context(self, context_max: int) -> None:
        text = advice(self.prepared.user_agent, context_max)
        header = b"x-turnout-advice: %b\r\n" % text if text else b""
        extra = (("max", context_max), ("estimated_prompt_tokens", self.floor))
        self.refuse(Outcome.CONTEXT_EXCEEDED, too_long(self.model, self.floor, context_max), header, extra)

    def refuse(
        self,
        outcome: Outcome,
        message: str,
        header: bytes = b"",
        extra: tuple[tuple[str, object], ...] = (),
        *,
        code: str = "",
        retry_after_s: int | None = None,
        status: int = 0,
    ) -> None:
        """End with an error of ours; `extra` members stand inside the error object, `status` replaces the table's."""
        self.status = status or ENDINGS[outcome].status
        self.client.write(replies.own_error(self, outcome, message, header, extra, code=code, after_s=retry_after_s))
        self._end(outcome, self.clock())
        self.client.finish()

    def _end_in_band(self, outcome: Outcome, kind: ErrorKind = ErrorKind.CANCELLED) -> None:
        """W3: the head is out, so the stream itself must say that it failed, and must not end as if it were whole."""
        shown = outcome if ENDINGS[outcome].type else Outcome.STREAM_INTERRUPTED
        event = self.dialect.in_band_error(of_outcome(shown, replies.MESSAGES[outcome]), self.request_id.decode())
        self.status = 200
        self._close_exchange(outcome, kind)
        self.client.write(answers.chunk(event) if self.chunked else event)
        self._end(outcome, self.clock())
        self.client.close_without_terminator()

    def _close_exchange(self, outcome: Outcome, kind: ErrorKind = ErrorKind.CANCELLED) -> None:
        if self.exchange is not None and self.exchange.state is not State.CLOSED:
            self.exchange.close(outcome, self.clock(), kind)

    def _stop_attempt(self) -> None:
        self._ticket = None
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
        elif self.response is not None:
            self.cancel(self.response)
        if self.rival is not None:
            self.cancel(self.rival)
            self.rival = None

    def cancel(self, response: AttemptResponse) -> None:
        """Close the connection of an attempt, wherever it is."""
        if response.attempt.legs is not None:
            response.attempt.legs.driver.abort()
        if response.upstream is not None:
            response.upstream.pool.cancel(response)

    def _end(self, outcome: Outcome, now: float) -> None:
        self.outcome = outcome
        self.next_at_s = NEVER
        gateway = self.gateway
        gateway.runs.discard(self)
        gateway.record(call_fact(self, now))
        if outcome is COMPLETED and self.exchange is not None and self.exchange.ask.session:
            self._keep_warm(self.exchange.ask.session, now)
        if self.extra is not None:
            ended(cast("Run", self), outcome)
        if self.response is not None:
            # Run and response name each other: without this, bodies wait for the collector.
            self.response.release()
            self.response = None

    def _keep_warm(self, session: int, now: float) -> None:
        """The endpoint that completed a session's newest call is where the session is warm (its hot route)."""
        if self.response is not None:
            self.gateway.fleet.pin(session, self.response.attempt.endpoint, now)

    def total_s(self) -> float:
        """Return how long this request may take."""
        return min(self.prepared.timeout_s or NEVER, self.gateway.timeout_options.total_s)
