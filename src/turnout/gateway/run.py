"""One exchange at work: joins a client connection to the engine connections of its attempts.

The core decides (`Exchange`), this file carries the decisions out and reports what happened. It costs no task and no
timer of its own: the client connection, the response of the current attempt and the gateway's tick call it.
"""

from __future__ import annotations

from turnout.core.admission.gate import Applicant
from turnout.core.admission.precheck import context_exceeded, estimate_floor
from turnout.core.attempt import Attempt
from turnout.core.errors import ErrorKind, Outcome
from turnout.core.exchange import Exchange
from turnout.core.fleet.level import never_fits
from turnout.core.fleet.registry import Pool
from turnout.core.lifecycle import GiveUp, GoOn, Next, Open, Queued, State, Trouble, Wait
from turnout.core.options import Timeout
from turnout.core.retry_loop import Route
from turnout.core.scheduling.ask import Ask
from turnout.dialects.splice import upstream_body
from turnout.gateway import answers, engine_ids, fallback, legs, replies, rescue
from turnout.gateway.admission import applicant
from turnout.gateway.extra import choose, looked_up, next_model
from turnout.gateway.open_run import COMPLETED, OpenRun
from turnout.gateway.rank_address import addressed
from turnout.gateway.response import AttemptResponse
from turnout.gateway.wording import CODES, POISON, too_large, unspoken
from turnout.http.response_head import ResponseHead


class Run(OpenRun):
    """Drives one accepted request to its one outcome (`http.handler.Exchanged`)."""

    __slots__ = ()

    # -- opening ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Check what needs no engine, then open the first attempt (request-path §1, steps 10 to 16)."""
        gateway, request = self.gateway, self.request
        model = self.model = self.asked_model = self.catalogue.resolve(request.model)
        if not model:
            model = self.model = self.asked_model = choose(self)
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
        entry = self.catalogue.entry(model)
        self.floor = (
            max(1, len(prompt.tokens))
            if prompt.tokens
            else estimate_floor(prompt.units, prompt.messages, prompt.tools_bytes, entry.chars_per_token)
        )
        members = pool.members
        if request.dialect not in pool.dialects:
            members = [member for member in members if request.dialect in member.dialects]
            if pool.members and not members:
                self.refuse(Outcome.UNSERVABLE, unspoken(model, request.path))
                return
        context_max = context_exceeded(self.floor, [member.context_max for member in members])
        if context_max is not None:
            self._refuse_context(context_max)
            return
        if self.floor > gateway.recovery.least_cache_tokens and never_fits(self.floor, members):
            self.refuse(Outcome.UNSERVABLE, too_large(model, self.floor))
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
        fence = gateway.recovery.fence
        if fence.active and fence.holds(self.request.body, self.started_s):
            self.refuse(Outcome.UPSTREAM_UNREACHABLE, CODES[POISON], code=POISON)
            return
        ask = gateway.asker.ask(self, pool)
        if gateway.tokenizing is None or not gateway.tokenizing.waits(self, pool, ask, attempts):
            self.enter(ask, pool, attempts, self.started_s if attempts is None else self.clock())

    def enter(self, ask: Ask, pool: Pool, attempts: list[Attempt] | None, now: float) -> None:
        """Open the exchange: everything that scheduling can know is known."""
        gateway, request, model = self.gateway, self.request, self.model
        recovery = gateway.recovery
        gate = self.gate = recovery.doors.gate(model)
        if request.stream:
            self.hedged = recovery.hedging(self)
        exchange = self.exchange = Exchange(
            ask,
            pool,
            gateway.fleet,
            gateway.retry_options,
            gateway.budget(model),
            gateway.rng,
            self.started_s,
            self.total_s(),
            gate,
            self,
        )
        if attempts is not None:
            exchange.attempts = attempts
            exchange.deadline_s = self.started_s + self.total_s()
            turned = len(self.extra.models) if self.extra is not None else 0
            exchange.trouble = Trouble(before_model=len(attempts), models=1 + turned)
        gateway.runs.add(self)
        self.client.attach(self)
        anonymous = not self.principal.key_id
        following = exchange.begin(now, anonymous=anonymous, limited=gate.limited and not anonymous)
        if attempts is None:
            self.decide_s = self.clock() - now
        first = exchange.decision
        self._follow(following)
        if first is not None:  # nobody waits for this: the request is on its way
            gateway.decided(self, first)

    # -- the attempt loop ---------------------------------------------------------------------------------------------

    def failed(
        self, response: AttemptResponse, kind: ErrorKind, status: int | None, retry_after_s: float | None = None
    ) -> None:
        """End an attempt that failed and do what follows."""
        tap, joiner = response.tap, response.joiner
        shown = joiner is None or not joiner.failed  # what does not fit the first answer never went to the client
        if shown and tap is not None and tap.terminated and tap.complete and self.response is response:
            response.end_stream()  # P3: the client has all of it, terminator included; nothing may follow that
            return
        attempt = response.attempt
        if attempt.legs is not None:
            kind = attempt.legs.driver.failing(kind)
        self.cancel(response)
        attempt.note(response.first_output_s, response.events, tools=response.tap is not None and response.tap.tools)
        exchange, now = self._exchange, self.clock()
        busy = kind is ErrorKind.TIMEOUT_RESPONSE and self.gateway.recovery.health.progress(attempt.endpoint, now)
        following = exchange.attempt_failed(
            kind, now, status=status, retry_after_s=retry_after_s, attempt=attempt, died=response.lost, busy=busy
        )
        if type(following) is GoOn:
            if response is self.response:
                self.response = self.rival
            self.rival = None
            return
        if exchange.state is State.COMMITTED:
            if self.rescue is not None:
                following = rescue.failed(self, response, kind, status, following)
            else:
                following = rescue.begin(self, response, kind) or following
        self._follow(following)
        self.place_freed()

    def first_byte(self, response: AttemptResponse) -> None:
        """Tell the core that the engine is through with the prompt."""
        self._exchange.first_byte(self.clock(), response.attempt)
        if self.gate.holding:
            self.place_freed()
        if self.hedged:
            self.gateway.recovery.hedges.first_token(self, response)

    def completed(self, response: AttemptResponse) -> None:
        """End the exchange after the last byte was handed over."""
        now = self.clock()
        self.status = 200
        exchange = self._exchange
        exchange.completed(response.usage, now, 200)
        if response.attempt.legs is not None:
            response.attempt.legs.driver.completed()
        if self.rescue is not None:
            self.gateway.recovery.rescues.rescued += 1
        self._end(COMPLETED, now)
        self.client.finish(close=not self.chunked)
        if self.gate.queue.size:
            self.place_freed()

    def _follow(self, following: Next) -> None:
        if type(following) is Open:
            self.open(following.attempt)
        elif type(following) is GiveUp:
            self._give_up(following)
        elif type(following) is Queued:
            self._ticket = following.ticket
            self.next_at_s = self._exchange.deadline_s
        elif type(following) is Wait:
            now = self.clock()
            self.next_at_s = self._exchange.deadline_s
            self._wait = self.gateway.loop.call_later(max(0.0, following.until_s - now), self._wait_over)

    def _wait_over(self) -> None:
        self._wait = None
        if self.outcome is None:
            self._follow(self._exchange.wait_over(self.clock()))

    def open(self, attempt: Attempt) -> None:
        """Send the request of an attempt; the endpoint decides what must be spliced."""
        if attempt.no > 1 and (self.response is None or self.response.attempt is not attempt):
            self.gateway.recovery.again(self._exchange.attempts)
            if attempt.model != self.model:
                self._turned_to(attempt.model)
        response = AttemptResponse(self, attempt)
        if attempt.kind == "resume":
            joiner = rescue.joiner(self, attempt)
            if joiner is None:
                self._follow(rescue.unusable(self))
                return
            response.join(joiner)
        if self.response is not None:
            self.response.release()
        self.response = response
        self.next_at_s = min(attempt.started_s + self.gateway.first_look_s, self._exchange.deadline_s)
        self._send(attempt, response)
        if self.hedged:
            self.gateway.recovery.hedges.watch(self, response)

    def _turned_to(self, model: str) -> None:
        """Go on with another model, at its gate."""
        self.place_freed()
        self.model = model
        self.gate = self.gateway.recovery.doors.gate(model)

    def open_rival(self, attempt: Attempt) -> None:
        """Send the same request to a second endpoint; the first output wins."""
        self.rival = AttemptResponse(self, attempt)
        self._send(attempt, self.rival)

    def _send(self, attempt: Attempt, response: AttemptResponse) -> None:
        request = self.request
        attempt.book = self.gateway.book()
        upstream = response.upstream = self.gateway.upstreams[attempt.endpoint.name]
        body = upstream_body(request, self.engine_model(attempt), ask_usage=upstream.stream_usage)
        if attempt.kind == "resume" and self.rescue is not None:
            body = self.rescue.body(body)
        if attempt.legs is not None:
            legs.send(self, attempt.legs, response, body)
            return
        forward = self.prepared.forward
        if attempt.endpoint.ranks is not None:
            body, forward = addressed(attempt, body, forward)
        head = b"%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
            upstream.head(request.path) if request.stream else upstream.whole_head(request.path),
            forward,
            engine_ids.of(attempt.endpoint, self.request_id),
            len(body),
        )
        upstream.pool.request(head + body, response)

    def _give_up(self, end: GiveUp) -> None:
        exchange, outcome = self._exchange, end.outcome
        if self.extra is not None and not end.code and (model := next_model(self, outcome)):
            self._close_exchange(outcome)
            self.model = model
            self.begin_again(exchange.attempts)
            return
        if end.code == POISON:
            self.gateway.recovery.fence.fence(self.request.body, self.clock())
        if outcome is Outcome.STREAM_INTERRUPTED or self.head_sent:
            self._end_in_band(outcome)
        elif outcome is Outcome.UPSTREAM_ANSWERED and self._answer is not None:
            self._relay_answer(*self._answer)
        else:
            tried = "; ".join(f"{a.endpoint.name}={a.error_kind}({a.http_status or '-'})" for a in exchange.attempts)
            message = f"{CODES.get(end.code) or replies.MESSAGES[outcome]} {tried}".rstrip()
            self._close_exchange(outcome)
            self.refuse(outcome, message, code=end.code, retry_after_s=end.retry_after_s)

    # -- owner of an exchange -----------------------------------------------------------------------------------------

    def applicant(self) -> Applicant:
        """Say who asks, for admission."""
        return applicant(self)

    def has_next_model(self) -> bool:
        """Tell whether a fallback model is left."""
        return bool(fallback.candidates(self))

    def next_model(self) -> Route | None:
        """Set out the next fallback model."""
        return fallback.next_model(self)

    def turn(self) -> bool:
        """Take a free place; False: it was none for this request."""
        following = self._exchange.turn(self.clock())
        if following is None:
            return False
        held = self._ticket is not None and self._ticket.held
        self._ticket = None
        if self._exchange.decision is not None and len(self._exchange.attempts) == 1:
            self.gateway.recovery.picked(self, held=held)
        self._follow(following)
        return True

    def queue_expired(self) -> None:
        """Give up waiting for a place."""
        if self.outcome is None and self._ticket is not None:
            self._ticket = None
            self._follow(self._exchange.queue_expired(self.clock()))

    def keeps(self, response: AttemptResponse) -> bool:
        """Tell whether what is sent is kept for a rescue."""
        return response.tap is not None and self.gateway.recovery.keeps(self)

    @property
    def deadline_s(self) -> float:
        """When everything must be over."""
        return self._exchange.deadline_s if self.exchange is not None else self.started_s + self.total_s()

    @property
    def timeouts(self) -> Timeout:
        """The time-outs of its model."""
        return self.catalogue.timeouts(self.model)

    # -- what the client and the clock do -----------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Act on the deadlines that have passed."""
        exchange = self._exchange
        if now >= exchange.deadline_s:
            self.interrupt(Outcome.DEADLINE_EXCEEDED, ErrorKind.DEADLINE)
            return
        response = self.response
        if response is None or self._wait is not None or self._ticket is not None:
            self.next_at_s = exchange.deadline_s
            if response is not None and response.committed:  # waits for a place to be joined: the client must not leave
                response.keep_alive(now)
                self.next_at_s = min(exchange.deadline_s, now + 1.0)
            return
        kind, due_s = response.due(now)
        if kind is not None:
            self.failed(response, kind, None)
            return
        response.keep_alive(now)
        self.next_at_s = min(exchange.deadline_s, due_s, now + self.gateway.relay_options.keepalive_s / 4)

    # -- what the response of an attempt uses -------------------------------------------------------------------------

    def engine_model(self, attempt: Attempt) -> str:
        """Return the endpoint's own name of the model; the client's spelling when it has none (U1)."""
        name = attempt.endpoint.served_as.get(self.model)
        return name or self.model

    def commit(self, response: AttemptResponse, held: bytes) -> None:
        """Send head and held events in one write: the commit point (G2)."""
        if self.rival is not None:
            self.gateway.recovery.hedges.settle(self, response)
        self._exchange.committed(response.attempt)
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
        if self.rival is not None:
            self.gateway.recovery.hedges.settle(self, response)
        self._exchange.committed(response.attempt)
        if self.extra is not None and self.gateway.response_cache is not None:
            self.gateway.response_cache.keep(self, response, body)
        if self.head_sent:
            event = self.dialect.as_events(body)
            if self.prepared.totals and self.gateway.totals is not None:
                event = self.gateway.totals.replayed(self, event)
            self.client.write(answers.chunk(event) if self.chunked else event)
            self.end_of_body()
            return
        if self.prepared.totals and self.gateway.totals is not None:
            body = self.gateway.totals.extended(self, body)
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
