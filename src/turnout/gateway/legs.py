"""One attempt with two legs at work: the prefill request, the hand-over, the decode request, and the end of both.

The decode leg is the attempt's own `AttemptResponse`; `LegPair` is what stands beside it. Whatever ends one leg ends
the other in the same turn of the loop, and the exchange sees one attempt with one end (disaggregation §4). Nothing
waits between the prefill's answer and the contact to the decode endpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.core.errors import ErrorKind
from turnout.core.exchange import NOT_AN_ANSWER
from turnout.core.scheduling.legs import Legs
from turnout.core.scheduling.pairing import Pairing
from turnout.core.usage import Usage
from turnout.dialects.openai_answer import classify, retry_after_s
from turnout.dialects.splice import upstream_body
from turnout.engines import sglang_bootstrap, vllm_nixl
from turnout.gateway.legs_answer import Discarded, PrefillAnswer, with_cached
from turnout.gateway.legs_kept import Kept, kept_of
from turnout.gateway.legs_meeting import Meeting, meet

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.core.fleet.endpoint import EndpointState
    from turnout.gateway.response import AttemptResponse
    from turnout.gateway.run import Run
    from turnout.http.response_head import ResponseHead

_OK_MAX = 299
_ABORT_S = 1.0
_CONTACT_LOOK_S = 0.002
_PREDICTED_TIMES = 4.0
_REFUSED = frozenset(
    (
        ErrorKind.RATE_LIMIT,
        ErrorKind.OVERLOADED,
        ErrorKind.CONNECT_ERROR,
        ErrorKind.TIMEOUT_CONNECT,
        ErrorKind.TIMEOUT_SEND,
        ErrorKind.CONNECTION_RESET,
    )
)
"""The decode endpoint has not used the hand-over: another one may."""
_TIMEOUTS = frozenset((ErrorKind.TIMEOUT_FIRST_TOKEN, ErrorKind.TIMEOUT_RESPONSE))
_CLIENTS = frozenset((ErrorKind.BAD_REQUEST, ErrorKind.CONTENT_FILTER, ErrorKind.CONTEXT_OVERFLOW))


class LegPair:
    """The two legs of one attempt (`Legs.driver`)."""

    __slots__ = ("_body", "_decode_sent", "_handover", "_hung", "_legs", "_meeting", "_over", "_prefill", "_reused",
                 "_run", "cached", "response")  # fmt: skip

    def __init__(self, run: Run, legs: Legs, response: AttemptResponse, body: bytes) -> None:
        self._run = run
        self._legs = legs
        self._body = body
        self.response = response
        self.cached: int | None = None
        self._prefill: PrefillAnswer | None = None
        self._handover: vllm_nixl.Handover | None = None
        self._meeting: Meeting | None = None
        self._decode_sent = self._over = self._hung = self._reused = False

    @property
    def _pairing(self) -> Pairing:
        return self._legs.pairing

    @property
    def _serial(self) -> bool:
        return self._legs.transport == vllm_nixl.FLOW

    def begin(self) -> None:
        """Send what goes first."""
        self._look_in_time()
        run, legs = self._run, self._legs
        pairing, now = self._pairing, run.clock()
        attempts = run.exchange.attempts if run.exchange is not None else []
        kept = kept_of(attempts[:-1], pairing.options.lease_s, now)
        if len(attempts) > 1:
            pairing.count("rerouted", run.model)
        if self._serial and kept is not None:
            self._reused = True
            pairing.count("handle_reused", run.model)
            legs.ended(now, ErrorKind.CANCELLED)  # its prefill is not needed
            legs.prefilled_s = now
            self._hand_over(kept.handover)
            return
        if any(other.legs is not None and other.legs.prefilled_s is not None for other in attempts[:-1]):
            pairing.count("reprefilled", run.model)
        prefill = legs.prefill
        self._prefill = PrefillAnswer(self)
        body = self._prefill_body(prefill)
        if self._serial:
            self._send(prefill, vllm_nixl.prefill_body(body), self._prefill)
            return
        self._meeting = meeting = meet(pairing, legs, now, run.gateway.rng)
        pairing.transfers.handing(prefill.name, legs.decode.name, now)
        more, body = meeting.prefill(body)
        self._send(prefill, body, self._prefill, more)
        if not self._over:
            more, body = meeting.decode(self._body)
            self._send_decode(body, more)

    # -- the prefill leg ----------------------------------------------------------------------------------------------

    def prefill_ended(self, head: ResponseHead, body: bytes) -> None:
        """Hear the whole answer of the prefill endpoint."""
        run, legs = self._run, self._legs
        self._prefill = None
        if self._over:
            return
        if head.status > _OK_MAX:
            kind = classify(head.status, body, legs.prefill.served_as.get(run.model) or run.model)
            if kind not in NOT_AN_ANSWER:
                run.remember_answer(head, body)
            self._prefill_failed(kind, head.status, retry_after_s(head.get, run.gateway.now_ms() / 1000))
            return
        upstream = run.gateway.upstreams.get(legs.prefill.name)
        if upstream is not None and upstream.asks_load:
            run.gateway.recovery.answered(legs.prefill, head)
        if self._meeting is not None:
            self.cached = self._meeting.cached(body)
            self._prefilled(self.cached)
            return
        try:
            handover = vllm_nixl.read_answer(body)
        except vllm_nixl.BadHandover:
            self._prefill_failed(ErrorKind.BAD_RESPONSE, head.status)
            return
        pairing = self._pairing
        if handover.params and not pairing.may_name(legs.prefill.name, handover.host, handover.port):
            pairing.count("handover_refused", legs.prefill.name)
            named = f"{handover.host[:64]}:{handover.port}"
            pairing.alarm_once("handover_not_allowed", {"endpoint": legs.prefill.name, "named": named})
            self._prefill_failed(ErrorKind.BAD_RESPONSE, head.status)
            return
        self._prefilled(handover.cached_tokens)
        self._hand_over(handover)

    def prefill_failure(self, kind: ErrorKind) -> None:
        """Hear that the prefill endpoint gives no whole answer."""
        self._prefill = None
        if not self._over:
            self._prefill_failed(kind, None)

    def _prefilled(self, cached: int | None) -> None:
        legs, pairing = self._legs, self._pairing
        now = self._run.clock()
        legs.prefilled(now, cached)
        self._look_in_time()
        pairing.count("legs", legs.prefill.name, "prefill", "ok")
        pairing.observe("prefill_seconds", now - legs.opened_s, self._run.model)

    def _prefill_failed(self, kind: ErrorKind, status: int | None, after_s: float | None = None) -> None:
        run, legs, response = self._run, self._legs, self.response
        if response.first_output_s is not None:
            return  # the decode side has all blocks: what becomes of the prefill matters no more
        row = 1 if kind in _CLIENTS else 2 if status in (429, 503) else 3
        if self._serial and run.exchange is not None:
            run.exchange.ask.decode = legs.decode.name  # nobody has used it: another prefill endpoint for the same
        self._fault(row)
        self._pairing.count("legs", legs.prefill.name, "prefill", str(kind))
        legs.blame_prefill(response.attempt)
        run.failed(response, kind, status, after_s)

    # -- the decode leg -----------------------------------------------------------------------------------------------

    def _hand_over(self, handover: vllm_nixl.Handover) -> None:
        self._handover = handover
        self.cached = handover.cached_tokens
        if not handover.params:
            self._pairing.count("handover_empty", self._run.model)
            self._fault(4)
        else:
            self._pairing.transfers.handing(self._legs.prefill.name, self._legs.decode.name, self._run.clock())
        self._send_decode(vllm_nixl.decode_body(self._body, handover.params))
        self._contact(self._run.clock())

    def _contact(self, since: float) -> None:
        """Nothing waits between the legs: a decode endpoint that is not reached at once is not waited for."""
        run = self._run
        if self._over:
            return
        waited_s = run.clock() - since
        if self.response.connection is not None:
            self._pairing.observe("handover_seconds", waited_s, run.model)
        elif waited_s >= self._pairing.options.handover_max_s:
            run.failed(self.response, ErrorKind.TIMEOUT_CONNECT, None)
        else:
            run.gateway.loop.call_later(_CONTACT_LOOK_S, self._contact, since)

    def _send_decode(self, body: bytes, more: bytes = b"") -> None:
        run, response = self._run, self.response
        decode = self._legs.decode
        upstream = run.gateway.upstreams.get(decode.name)
        if upstream is None or decode.gone:
            run.failed(response, ErrorKind.ENDPOINT_GONE, None)
            return
        self._decode_sent = True
        response.upstream = upstream
        self._send(decode, body, response, more)

    def failing(self, kind: ErrorKind) -> ErrorKind:
        """The attempt fails as `kind`: end the other leg, judge the pair, and say what counts against the endpoint."""
        legs, pairing, now = self._legs, self._pairing, self._run.clock()
        if self._over:
            return kind
        if kind in _TIMEOUTS and self.response.first_output_s is None:
            if self._serial and legs.prefilled_s is None:
                self._fault(3)
                legs.blame_prefill(self.response.attempt)
            else:
                self._hung = True
        if self.response.attempt.endpoint is not legs.prefill:
            pairing.count("legs", legs.decode.name, "decode", str(kind))
            if self.response.first_output_s is not None:
                self._fault(10)
            else:
                kind = self._decode_failed(kind, now)
        self.abort()
        return kind

    def _decode_failed(self, kind: ErrorKind, now: float) -> ErrorKind:
        """Judge a decode leg that showed nothing: the endpoint, the pair or the lease."""
        legs, pairing, run = self._legs, self._pairing, self._run
        handover, ready_s = self._handover, legs.prefilled_s
        keeps = handover is not None and bool(handover.params) and ready_s is not None
        if self._hung:
            state = pairing.book.pair(legs.prefill.name, legs.decode.name)
            state.hangs += 1
            self._fault(12)
            state.failed(now, pairing.options.quarantine_s)
            return ErrorKind.ENDPOINT_GONE if state.hangs == 1 else kind  # the first time neither endpoint is blamed
        if keeps and now - (ready_s or now) > pairing.options.lease_s:
            pairing.count("lease_expired", run.model)
            self._fault(11)
        elif kind in _REFUSED:
            self._fault(9 if kind is ErrorKind.CONNECTION_RESET else 8)
            if handover is not None and ready_s is not None and keeps and not self._reused:
                legs.handle = Kept(handover, legs.prefill.name, ready_s)
        elif kind in (ErrorKind.SERVER_ERROR, ErrorKind.BAD_RESPONSE) and self._decode_sent:
            # The transfer failed, on whichever side: the pair rests, and the prefill is made elsewhere.
            self._fault(5 if legs.prefill.gone or legs.prefill.unreachable else 6)
            pairing.book.pair(legs.prefill.name, legs.decode.name).failed(now, pairing.options.quarantine_s)
            if run.exchange is not None:
                run.exchange.ask.tried = (*run.exchange.ask.tried, legs.prefill.name)
            return ErrorKind.ENDPOINT_GONE
        return kind

    def completed(self) -> None:
        """The decode leg is complete; an open prefill answer is read to its end for a while, then given up."""
        legs, pairing, run = self._legs, self._pairing, self._run
        pairing.count("legs", legs.decode.name, "decode", "ok")
        state = pairing.book.pair(legs.prefill.name, legs.decode.name)
        state.worked()
        output_s = self.response.first_output_s
        if output_s is not None and legs.prefilled_s is not None and self._serial:
            pairing.observe("first_byte_after_prefill_seconds", output_s - legs.prefilled_s, run.model)
            if run.request.stream:
                step_s = legs.decode.prefill.step_s
                state.took(max(0.0, output_s - legs.prefilled_s - step_s), legs.transfer_s)
        self._over = True
        self._part()
        if self._prefill is not None:
            run.gateway.loop.call_later(pairing.options.drain_s, self._drained)

    def abort(self) -> None:
        """End whatever leg is open, at once; any number of times."""
        if self._over:
            return
        self._over = True
        pairing, flow, now = self._pairing, self._legs.transport, self._run.clock()
        self._orphan(now)
        legs = ["prefill"] * (self._prefill is not None) + ["decode"] * self._decode_sent
        self._close_prefill()
        body = self._meeting.abort if self._meeting is not None else None
        if body is not None:
            for endpoint in (self._legs.prefill, self._legs.decode):
                self._forget(endpoint, body)
        self._part()
        for leg in legs:
            pairing.count("aborts", flow, leg)
            pairing.observe("abort_seconds", self._run.clock() - now, flow, leg)

    def _orphan(self, now: float) -> None:
        """Count how long blocks stay pinned that nobody fetches: until their lease ends (§5)."""
        handover, ready_s = self._handover, self._legs.prefilled_s
        if handover is None or not handover.params or ready_s is None or self._legs.handle is not None:
            return
        if self.response.first_output_s is None:
            self._pairing.orphaned_s += max(0.0, self._pairing.options.lease_s - (now - ready_s))

    def limit_s(self, whole_s: Callable[[], float]) -> float:
        """Return how long after its opening the attempt may stay without output; `whole_s`: D3 of a whole answer."""
        legs, options = self._legs, self._pairing.options
        rate = self._run.gateway.fleet.scheduling.prior_prefill_tokens_per_s
        prefill_s = max(options.prefill_timeout_s, _PREDICTED_TIMES * legs.uncached / rate)
        after_s = options.first_byte_after_prefill_s
        if legs.prefilled_s is None:  # in concurrent flows its answer comes when the decode side has the blocks
            return prefill_s if self._serial else prefill_s + after_s
        if not self._run.request.stream:  # nothing of a whole answer is seen before its end
            after_s = max(after_s, whole_s())
        return after_s + legs.prefilled_s - legs.opened_s

    # -- what the client sees -----------------------------------------------------------------------------------------

    def rewritten(self, raw: bytes) -> bytes:
        """Put the prefill leg's cached tokens into an event or a body that has usage; the rest passes as it is."""
        return with_cached(raw, self.cached) if b'"usage"' in raw else raw

    def merged(self, usage: Usage | None) -> Usage | None:
        """Return the counts of the whole attempt: the decode leg's, with what the prefill leg found cached."""
        return None if usage is None else usage.with_cached(self.cached)

    def both(self, body: bytes, usage: Usage | None) -> tuple[bytes, Usage | None]:
        """Return a whole answer and its counts."""
        return self.rewritten(body), self.merged(usage)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _prefill_body(self, prefill: EndpointState) -> bytes:
        run = self._run
        name = prefill.served_as.get(run.model) or run.model
        if run.rescue is not None or name == run.engine_model(self.response.attempt):
            return self._body
        return upstream_body(run.request, name, ask_usage=True)

    def _send(
        self, endpoint: EndpointState, body: bytes, sink: AttemptResponse | PrefillAnswer, more: bytes = b""
    ) -> None:
        run = self._run
        upstream = run.gateway.upstreams.get(endpoint.name)
        if upstream is None or endpoint.gone:
            sink.on_failure(ErrorKind.ENDPOINT_GONE, "gone")
            return
        streams = run.request.stream and (sink is self.response or not self._serial)
        head = b"%b%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
            upstream.head(run.request.path) if streams else upstream.whole_head(run.request.path),
            run.prepared.forward,
            more,
            run.request_id,
            len(body),
        )
        upstream.pool.request(head + body, sink)

    def _look_in_time(self) -> None:
        """Have the tick look at the run when this leg's time is over: legs may have less of it than attempts."""
        run, options = self._run, self._pairing.options
        soonest = min(options.prefill_timeout_s, options.first_byte_after_prefill_s)
        run.next_at_s = min(run.next_at_s, run.clock() + soonest)

    def _drained(self) -> None:
        """Row 14: the prefill's answer was read long enough after the decode leg's end."""
        if self._prefill is not None:
            self._fault(14)
            self._pairing.count("aborts", self._legs.transport, "prefill")
            self._close_prefill()

    def _close_prefill(self) -> None:
        prefill, self._prefill = self._prefill, None
        upstream = self._run.gateway.upstreams.get(self._legs.prefill.name)
        if prefill is not None and upstream is not None:
            upstream.pool.cancel(prefill)

    def _forget(self, endpoint: EndpointState, body: bytes) -> None:
        """Ask an engine to abort by id; nobody waits for the answer."""
        gateway = self._run.gateway
        upstream = gateway.upstreams.get(endpoint.name)
        if upstream is None or endpoint.gone or endpoint.unreachable:
            return
        sink = Discarded()
        head = upstream.head(sglang_bootstrap.ABORT_PATH)
        upstream.pool.request(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body), sink)
        gateway.loop.call_later(_ABORT_S, upstream.pool.cancel, sink)

    def _part(self) -> None:
        if self._meeting is not None:
            self._meeting.leave(self._run.clock())

    def _fault(self, row: int) -> None:
        self._pairing.count("failures", str(row), self._legs.transport)


def send(run: Run, legs: Legs, response: AttemptResponse, body: bytes) -> None:
    """Send an attempt as two legs; `body` is what one endpoint alone would get."""
    legs.driver = pair = LegPair(run, legs, response, body)
    pair.begin()
