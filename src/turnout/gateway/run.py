"""One exchange at work: joins a client connection to the engine connections of its attempts.

The core decides (`Exchange`), this file carries the decisions out and reports what happened. It costs no task and no
timer of its own: the client connection, the response of the current attempt and the gateway's tick call it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from turnout.core.admission.precheck import context_exceeded, estimate_floor
from turnout.core.attempt import Attempt
from turnout.core.errors import ENDINGS, ErrorKind, Outcome
from turnout.core.exchange import Exchange, GiveUp, Next, Open, State
from turnout.core.fleet.registry import Pool
from turnout.core.types import Request
from turnout.dialects.envelope import in_band_error, of_outcome
from turnout.dialects.splice import upstream_body
from turnout.gateway import answers, replies
from turnout.gateway.advice import advice
from turnout.gateway.extra import Extra, choose, ended, looked_up, next_model
from turnout.gateway.facts import call_fact
from turnout.gateway.prepare import Prepared
from turnout.gateway.principals import Principal
from turnout.gateway.response import AttemptResponse
from turnout.http.head import Head
from turnout.http.response_head import ResponseHead
from turnout.http.server import Connection

if TYPE_CHECKING:
    from turnout.gateway.service import Gateway

_NEVER = float("inf")


class Run:
    """Drives one accepted request to its one outcome (`http.server.Exchanged`)."""

    __slots__ = (
        "_answer",
        "_wait",
        "call_id",
        "chunked",
        "client",
        "clock",
        "decide_s",
        "exchange",
        "extra",
        "floor",
        "gateway",
        "head_sent",
        "model",
        "next_at_s",
        "outcome",
        "prepared",
        "principal",
        "request",
        "request_id",
        "response",
        "started_ms",
        "started_s",
        "status",
    )

    def __init__(
        self, gateway: Gateway, client: Connection, head: Head, request: Request, principal: Principal
    ) -> None:
        self.gateway = gateway
        self.clock = gateway.clock
        self.client = client
        self.prepared: Prepared = head.prepared
        self.request = request
        self.principal = principal
        self.chunked = head.version_minor == 1
        self.started_s = self.clock()
        self.started_ms = gateway.now_ms()
        self.call_id = gateway.next_id(self.started_ms)
        self.request_id = self.prepared.client_id or self.call_id.encode()
        self.model = ""
        self.exchange: Exchange | None = None
        self.extra: Extra | None = None
        self.response: AttemptResponse | None = None
        self.outcome: Outcome | None = None
        self.status = 0
        self.floor = 0
        self.decide_s = 0.0
        self.head_sent = False
        self.next_at_s = _NEVER
        self._answer: tuple[ResponseHead, bytes | None] | None = None
        self._wait: asyncio.TimerHandle | None = None

    # -- opening ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Check what needs no engine, then open the first attempt (request-path §1, steps 10 to 16)."""
        gateway, request = self.gateway, self.request
        model = self.model = gateway.catalogue.resolve(request.model)
        if not model:
            model = self.model = choose(self)
            if not model:
                return
        if not self.principal.may_use(model):
            self.refuse(Outcome.MODEL_FORBIDDEN, f"This key may not use the model {model!r}.")
            return
        pool = gateway.fleet.pool(model)
        if pool is None:
            self.refuse(Outcome.NO_ENDPOINT, replies.MESSAGES[Outcome.NO_ENDPOINT])
            return
        prompt = request.prompt
        entry = gateway.catalogue.entry(model)
        self.floor = (
            max(1, len(prompt.tokens))
            if prompt.tokens
            else estimate_floor(prompt.units, prompt.messages, prompt.tools_bytes, entry.chars_per_token)
        )
        context_max = context_exceeded(self.floor, [member.context_max for member in pool.members])
        if context_max is not None:
            self._refuse_context(context_max)
            return
        if self.extra is None or not looked_up(self):
            self._start(pool)

    def begin_again(self, attempts: list[Attempt] | None = None) -> None:
        """Go on alone after waiting for an equal request, or with another model after these attempts."""
        pool = self.gateway.fleet.pool(self.model)
        if pool is None:
            self.refuse(Outcome.NO_ENDPOINT, replies.MESSAGES[Outcome.NO_ENDPOINT])
        else:
            self._start(pool, attempts)

    def _start(self, pool: Pool, attempts: list[Attempt] | None = None) -> None:
        gateway = self.gateway
        ask = gateway.ask(self, pool)
        exchange = self.exchange = Exchange(
            ask,
            pool,
            gateway.fleet,
            gateway.retry_options,
            gateway.budget(self.model),
            gateway.rng,
            self.started_s,
            self.total_s(),
        )
        if attempts is not None:
            exchange.attempts = attempts
            exchange.deadline_s = self.started_s + self.total_s()
        gateway.runs.add(self)
        self.client.attach(self)
        following = exchange.begin(self.started_s if attempts is None else self.clock())
        if attempts is None:
            self.decide_s = self.clock() - self.started_s
        gateway.decided(self)
        self._follow(following)

    # -- the attempt loop ---------------------------------------------------------------------------------------------

    def failed(
        self, response: AttemptResponse, kind: ErrorKind, status: int | None, retry_after_s: float | None = None
    ) -> None:
        """End an attempt that failed and do what follows."""
        self._cancel(response)
        self._follow(self._exchange.attempt_failed(kind, self.clock(), status=status, retry_after_s=retry_after_s))

    def first_byte(self) -> None:
        """Tell the core that the engine is through with the prompt."""
        self._exchange.first_byte(self.clock())

    def completed(self, response: AttemptResponse) -> None:
        """End the exchange after the last byte was handed over."""
        now = self.clock()
        self.status = 200
        self._exchange.completed(response.usage, now, 200)
        self._end(Outcome.COMPLETED, now)
        self.client.finish(close=not self.chunked)

    def _follow(self, following: Next) -> None:
        if type(following) is Open:
            self.open(following.attempt)
        elif type(following) is GiveUp:
            self._give_up(following.outcome)
        else:
            now = self.clock()
            self.next_at_s = self._exchange.deadline_s
            self._wait = self.gateway.loop.call_later(max(0.0, following.until_s - now), self._wait_over)  # type: ignore[union-attr]

    def _wait_over(self) -> None:
        self._wait = None
        if self.outcome is None:
            self._follow(self._exchange.wait_over(self.clock()))

    def open(self, attempt: Attempt) -> None:
        """Send the request of an attempt; the endpoint decides what must be spliced."""
        request = self.request
        upstream = self.gateway.upstreams[attempt.endpoint.name]
        body = upstream_body(request, self.engine_model(attempt), ask_usage=upstream.stream_usage)
        if self.response is not None:
            self.response.release()
        response = self.response = AttemptResponse(self, attempt)
        self.next_at_s = min(attempt.started_s + self.gateway.first_look_s, self._exchange.deadline_s)
        head = b"%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
            upstream.head(request.path),
            self.prepared.forward,
            self.request_id,
            len(body),
        )
        upstream.pool.request(head + body, response)

    def _give_up(self, outcome: Outcome) -> None:
        if self.extra is not None and (model := next_model(self, outcome)):
            attempts = self._exchange.attempts
            self._close_exchange(outcome)
            self.model = model
            self.begin_again(attempts)
            return
        if outcome is Outcome.STREAM_INTERRUPTED or self.head_sent:
            self._end_in_band(outcome)
        elif outcome is Outcome.UPSTREAM_ANSWERED and self._answer is not None:
            self._relay_answer(*self._answer)
        else:
            attempts = self._exchange.attempts
            tried = "; ".join(f"{a.endpoint.name}={a.error_kind}({a.http_status or '-'})" for a in attempts)
            self._close_exchange(outcome)
            self.refuse(outcome, f"{replies.MESSAGES[outcome]} {tried}".rstrip())

    # -- what the client and the clock do -----------------------------------------------------------------------------

    def client_gone(self) -> None:
        """Close the engine's connection at once: nobody waits for the answer (W7)."""
        if self.outcome is not None or (self.response is not None and self.response.ended_by_client()):
            return
        self._stop_attempt()
        self.status = 499
        self._close_exchange(Outcome.CLIENT_GONE)
        self._end(Outcome.CLIENT_GONE, self.clock())

    def client_paused(self) -> None:
        """Pass the client's pace on to the engine."""
        if self.response is not None:
            self.response.pause()

    def client_resumed(self) -> None:
        """Let the engine go on."""
        if self.response is not None:
            self.response.resume()

    def tick(self, now: float) -> None:
        """Act on the deadlines that have passed."""
        exchange = self._exchange
        if now >= exchange.deadline_s:
            self.interrupt(Outcome.DEADLINE_EXCEEDED, ErrorKind.DEADLINE)
            return
        response = self.response
        if response is None or self._wait is not None:
            self.next_at_s = exchange.deadline_s
            return
        kind, due_s = response.due(now)
        if kind is not None:
            self.failed(response, kind, None)
            return
        response.keep_alive(now)
        self.next_at_s = min(exchange.deadline_s, due_s, now + self.gateway.relay_options.keepalive_s / 4)

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

    # -- what the response of an attempt uses -------------------------------------------------------------------------

    def engine_model(self, attempt: Attempt) -> str:
        """Return the endpoint's own name of the model; the client's spelling when it has none (U1)."""
        name = attempt.endpoint.served_as.get(self.model)
        return name or self.model

    def commit(self, response: AttemptResponse, held: bytes) -> None:
        """Send head and held events in one write: the commit point (G2)."""
        self._exchange.committed()
        payload = (answers.chunk(held) if held else b"") if self.chunked else held
        if self.head_sent:
            self.client.write(payload)
            return
        self.head_sent = True
        self.client.write(replies.stream_head(self, response) + payload)

    def send_early_head(self) -> None:
        """Send a head that promises nothing, because the client has waited long (W2)."""
        self.head_sent = True
        self.client.write(replies.early_head(self))

    def end_of_body(self) -> None:
        """End a chunked answer correctly: the engine ended it, too."""
        if self.chunked:
            self.client.write(answers.LAST_CHUNK)

    def deliver(self, response: AttemptResponse, body: bytes) -> None:
        """Send a whole answer."""
        self._exchange.committed()
        if self.extra is not None and self.gateway.response_cache is not None:
            self.gateway.response_cache.keep(self, response, body)
        if self.head_sent:
            event = b"data: " + body + b"\n\n"
            self.client.write(answers.chunk(event) if self.chunked else event)
            self.end_of_body()
            return
        self.client.write(replies.whole_answer(self, response, body))

    def replay(self, answer: bytes) -> None:
        """End with a stored answer."""
        self.status = 200
        self.client.write(answer)
        self._end(Outcome.CACHED, self.clock())
        self.client.finish()

    def remember_answer(self, head: ResponseHead, body: bytes | None) -> None:
        """Keep the latest answer of an engine that refused; body None: too large to relay."""
        self._answer = (head, body)

    # -- ending -------------------------------------------------------------------------------------------------------

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
        message = (
            f"This request needs at least {self.floor} tokens, but the maximum context length of {self.model} is "
            f"{context_max} tokens. Please reduce the length of the messages."
        )
        text = advice(self.prepared.user_agent, context_max)
        header = b"x-turnout-advice: %b\r\n" % text if text else b""
        self.refuse(
            Outcome.CONTEXT_EXCEEDED, message, header, (("max", context_max), ("estimated_prompt_tokens", self.floor))
        )

    def refuse(
        self, outcome: Outcome, message: str, header: bytes = b"", extra: tuple[tuple[str, object], ...] = ()
    ) -> None:
        """End with an error of ours; `extra` members stand inside the error object."""
        self.status = ENDINGS[outcome].status
        self.client.write(replies.own_error(self, outcome, message, header, extra))
        self._end(outcome, self.clock())
        self.client.finish()

    def _end_in_band(self, outcome: Outcome, kind: ErrorKind = ErrorKind.CANCELLED) -> None:
        """W3: the head is out, so the stream itself must say that it failed, and must not end as if it were whole."""
        shown = outcome if ENDINGS[outcome].type else Outcome.STREAM_INTERRUPTED
        event = in_band_error(of_outcome(shown, replies.MESSAGES[outcome]))
        self.status = 200
        self._close_exchange(outcome, kind)
        self.client.write(answers.chunk(event) if self.chunked else event)
        self._end(outcome, self.clock())
        self.client.close_without_terminator()

    def _close_exchange(self, outcome: Outcome, kind: ErrorKind = ErrorKind.CANCELLED) -> None:
        if self.exchange is not None and self.exchange.state is not State.CLOSED:
            self.exchange.close(outcome, self.clock(), kind)

    def _stop_attempt(self) -> None:
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
        elif self.response is not None:
            self._cancel(self.response)

    def _cancel(self, response: AttemptResponse) -> None:
        self.gateway.upstreams[response.attempt.endpoint.name].pool.cancel(response)

    def _end(self, outcome: Outcome, now: float) -> None:
        self.outcome = outcome
        self.next_at_s = _NEVER
        gateway = self.gateway
        gateway.runs.discard(self)
        gateway.record(call_fact(self, now))
        if self.extra is not None:
            ended(self, outcome)
        if self.response is not None:
            # Run and response name each other: without this, bodies wait for the collector.
            self.response.release()
            self.response = None

    def total_s(self) -> float:
        """Return how long this request may take."""
        return min(self.prepared.timeout_s or _NEVER, self.gateway.timeout_options.total_s)
