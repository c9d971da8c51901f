"""The response of one attempt, from the engine's head to its end: held until it is safe to show, then relayed.

Until the first output event of a stream, or the last byte of another answer, nothing reaches the client, so every
failure up to there can lead to the next attempt (resilience §4). After it, bytes travel as they come: events that
hold nothing but output are passed on with the engine's own chunk framing, unread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout.core.errors import ErrorKind
from turnout.core.exchange import NOT_AN_ANSWER
from turnout.core.usage import Usage
from turnout.dialects.event_tap import Event, EventTap
from turnout.dialects.openai_answer import classify, retry_after_s
from turnout.dialects.resume import Joiner
from turnout.gateway import answers
from turnout.gateway.holding import FAST, Mode
from turnout.gateway.patience import unanswered, whole_by
from turnout.gateway.upstream import Reach
from turnout.http.client import AFTER_LOSS, EngineConnection
from turnout.http.response_head import ResponseHead

if TYPE_CHECKING:
    from turnout.core.attempt import Attempt
    from turnout.gateway.run import Run

_REFUSAL_HOLD_BYTES: Final = 65536
_OK_MAX: Final = 299
_NEVER: Final = float("inf")


class AttemptResponse:
    """Receives the response of one attempt (`http.client.Sink`) and reports to its run."""

    __slots__ = (
        "_asked_s",
        "_held",
        "_held_bytes",
        "_hold",
        "_kept_bytes",
        "_last_event_s",
        "_last_output_s",
        "_last_write_s",
        "_paused",
        "_run",
        "attempt",
        "committed",
        "connection",
        "events",
        "first_output_s",
        "head",
        "head_at_s",
        "joiner",
        "kept",
        "lost",
        "mode",
        "plain",
        "tap",
        "upstream",
        "usage",
    )

    def __init__(self, run: Run, attempt: Attempt) -> None:
        self._run = run
        self.attempt = attempt
        self.connection: EngineConnection | None = None
        self.head: ResponseHead | None = None
        self.head_at_s = 0.0
        self.mode = Mode.NONE
        self.tap: EventTap | None = None
        self.usage: Usage | None = None
        self.events = 0
        self.committed = False
        self.first_output_s: float | None = None
        self._held: list[bytes] = []
        self._held_bytes = self._kept_bytes = 0
        self._paused = False
        self._hold = FAST
        self.plain = False
        self.kept: list[bytes] | None = None
        self.lost = False
        self.joiner: Joiner | None = None
        self.upstream: Reach | None = None
        self._asked_s = attempt.started_s
        self._last_write_s = self._last_event_s = self._last_output_s = attempt.started_s

    # -- what the engine connection calls -----------------------------------------------------------------------------

    def on_head(self, head: ResponseHead) -> None:
        """Choose how to take the response."""
        run = self._run
        self.head = head
        self.head_at_s = run.clock()
        if head.prepared is None:
            head.prepared = answers.prepare(head)
        kind = head.prepared[1]
        if head.status > _OK_MAX:
            self.mode = Mode.REFUSED
        elif run.request.stream and kind == "events":
            self.mode = Mode.STREAM
            self._hold = run.gateway.recovery.hold(run)
            self.tap = run.dialect.tap(run.request, run.gateway.relay_options.event_max_bytes)
        elif kind == "json" and head.length != 0 and self.joiner is None:
            self.mode = Mode.HOLD
        else:
            run.failed(self, ErrorKind.BAD_RESPONSE, head.status)

    def on_body(self, payload: bytes, framed: bytes | None) -> None:
        """Relay, hold or inspect payload."""
        if self.mode is Mode.STREAM:
            run = self._run
            tap = self.tap
            if self.plain and not tap.partial and (events := tap.is_plain(payload)):  # type: ignore[union-attr]  # set with the mode
                now = run.clock()
                run.gateway.token_gap(now - self._last_event_s)
                self._last_event_s = self._last_output_s = self._last_write_s = now
                self.events += events
                if self.kept is not None:
                    self._keep(payload)
                if run.chunked:
                    run.client.write(answers.chunk(payload) if framed is None else framed)
                else:
                    run.client.write(payload)
                return
            self._inspect(payload)
        elif self.mode is Mode.HOLD:
            if not self._held:
                if payload.isspace():
                    return  # a sign of life: the answer has not begun
                self._run.first_byte(self)
                self._last_output_s = self.attempt.first_byte_s or 0.0
            self._held.append(payload)
            self._held_bytes += len(payload)
            if self._held_bytes > self._run.gateway.relay_options.body_hold_bytes:
                self._stream_from_here()
        elif self.mode is Mode.THROUGH:
            self._last_event_s = self._last_write_s = self._run.clock()
            self._write(payload)
        elif self.mode is Mode.REFUSED and self._held_bytes <= _REFUSAL_HOLD_BYTES:
            self._held.append(payload)
            self._held_bytes += len(payload)

    def on_end(self) -> None:
        """End the response that the engine ended."""
        run = self._run
        if self.mode is Mode.STREAM:
            self.end_stream()
        elif self.mode is Mode.HOLD:
            self._end_held()
        elif self.mode is Mode.THROUGH:
            run.end_of_body()
            run.completed(self)
        else:
            self._refused()

    def on_failure(self, kind: ErrorKind, detail: str) -> None:
        """Hear that the engine will not complete this response."""
        lost = ErrorKind.STREAM_CUT if self.mode is Mode.STREAM else ErrorKind.CONNECTION_RESET  # else: a wrong length
        self.lost = detail == AFTER_LOSS or kind in (lost, ErrorKind.CONNECTION_RESET)
        if kind is ErrorKind.STREAM_CUT and self.first_output_s is None:
            kind = ErrorKind.BAD_RESPONSE  # nothing was shown yet: a body shorter than announced
        self._run.failed(self, kind, None if self.head is None else self.head.status)

    # -- what the run calls -------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop reading from the engine until the client caught up."""
        if self.upstream is not None and not self._paused:
            self._paused = self.upstream.pool.pause(self)

    def resume(self) -> None:
        """Read on; the time spent waiting for the client is no stall of the engine."""
        if self.upstream is not None and self._paused:
            self._paused = False
            self._last_event_s = self._last_output_s = self._run.clock()
            self.upstream.pool.resume(self)

    def due(self, now: float) -> tuple[ErrorKind | None, float]:
        """Return the timeout that has passed, if any, and when to look again."""
        run = self._run
        if self._paused:
            return None, now + run.timeouts.stall_s
        if self.first_output_s is None and self.mode is not Mode.THROUGH:
            unsent = self.connection if self.head is None else None
            kind, due = unanswered(run, self.attempt, unsent, self._asked_s)
            if self._held and self.mode is Mode.HOLD:
                due = min(due, whole_by(run, self._last_output_s, self._held_bytes))
            return (kind if now >= due else None), due
        if not self.committed:
            self._flush([], now)  # `guarded` holds for so long and no longer
        held_until_s = _NEVER if self.committed else (self.first_output_s or now) + self._hold.seconds
        return self._stalled(now, held_until_s)

    def _stalled(self, now: float, soonest: float) -> tuple[ErrorKind | None, float]:
        timeouts = self._run.timeouts
        due = min(self._last_event_s + timeouts.stall_s, self._last_output_s + timeouts.content_stall_s)
        return (ErrorKind.TIMEOUT_STALL if now >= due else None), min(due, soonest)

    @property
    def heard_s(self) -> float | None:
        """When the engine was last heard; None when it was not."""
        return max(self._last_event_s, self.head_at_s) if self.head is not None else None

    def shift(self, gap_s: float) -> None:
        """Forget a gap in which this process did not run: it was not the engine's."""
        self._asked_s += gap_s
        self._last_event_s += gap_s
        self._last_output_s += gap_s

    def join(self, joiner: Joiner) -> None:
        """Take the events of a second stream: what the client has already is not shown again."""
        self.joiner = joiner
        self.committed = True

    def keep_alive(self, now: float) -> None:
        """Send a sign of life when the client of a stream has waited long without a byte (W2)."""
        run = self._run
        if now - self._last_write_s < run.gateway.relay_options.keepalive_s or self._paused:
            return
        if not run.request.stream or self.mode in (Mode.HOLD, Mode.REFUSED, Mode.THROUGH):
            return
        self._last_write_s = now
        run.gateway.relayed.keepalives += 1
        if not run.head_sent:
            run.send_early_head()
        if not self.committed or not (self.tap and self.tap.partial):
            self._write(run.dialect.keepalive)

    def ended_by_client(self) -> bool:
        """End a stream whose client closed at the engine's last word: it has everything, framing aside (W7)."""
        tap = self.tap
        if tap is None or not (self.committed and tap.terminated and tap.complete):
            return False
        self.usage = tap.usage
        if self.connection is not None:
            self.connection.cancel()
        self._run.completed(self)
        return True

    def release(self) -> None:
        """Let go of the run and of what was held, and count what the tap saw."""
        if self.tap is not None:
            self._run.gateway.relayed.add(self.tap)
        self._held = []

    # -- streams ------------------------------------------------------------------------------------------------------

    def _inspect(self, payload: bytes) -> None:
        tap = self.tap
        run = self._run
        now = run.clock()
        shown: list[bytes] = []
        for event in tap.feed(payload):  # type: ignore[union-attr]  # set with the mode
            if event.error is not None or (event.done and not tap.complete):  # type: ignore[union-attr]
                self._flush(shown, now)
                self._error_event(event)
                return
            if event.bad and not self.committed and self.first_output_s is None:
                run.failed(self, ErrorKind.BAD_RESPONSE, self.head.status)  # type: ignore[union-attr]
                return
            if event.done and run.prepared.totals and run.gateway.totals is not None:
                shown.append(run.gateway.totals.event(run))
            if self.joiner is not None:
                shown.append(self.joiner.take(event.raw) if event.keep or event.done else b"")
                if self.joiner.failed:
                    run.gateway.recovery.rescues.mismatched += 1
                    run.failed(self, ErrorKind.CANCELLED, 200)
                    return
            elif event.keep and not (event.bad and self._hold.validates):
                shown.append(event.raw if not self.attempt.legs else self.attempt.legs.driver.rewritten(event.raw))
            if event.output:
                self._output(now)
            if not event.raw.startswith(b":"):  # D4: pings count, comments and halves of events do not
                self._last_event_s = now
        self._flush(shown, now)

    def _output(self, now: float) -> None:
        self.events += 1
        run = self._run
        if self.first_output_s is None:
            self.first_output_s = now
            run.next_at_s = min(run.next_at_s, now + self._hold.seconds)
            run.first_byte(self)
        else:
            run.gateway.token_gap(now - self._last_output_s)
        self._last_output_s = now

    def _flush(self, shown: list[bytes], now: float) -> None:
        if not self.committed:
            self._held += shown
            self._held_bytes += sum(map(len, shown))
            if self._hold.goes_on(self.events, len(self._held), self._held_bytes, self.first_output_s, now):
                return
            self._commit()
        else:
            payload = b"".join(shown)
            if not payload:
                return
            if self.kept is not None:
                self._keep(payload)
            self._write(payload)
        self._last_write_s = now

    def _commit(self) -> None:
        shown, self._held = self._held, []
        self.committed = self.plain = True
        payload = b"".join(shown)
        if self._run.keeps(self):
            self.kept = []
            self._keep(payload)
        self._run.commit(self, payload)

    def _keep(self, payload: bytes) -> None:
        """Keep what was sent, in case that another endpoint has to go on from here (R4)."""
        kept = self.kept
        if kept is not None:
            kept.append(payload)
            self._kept_bytes += len(payload)
            if self._kept_bytes > self._run.gateway.recovery.resume.keep_max_bytes:
                self.kept = None

    def _error_event(self, event: Event) -> None:
        """G3: an error inside a 200 is classified by its own code; a terminator that ends nothing is a cut."""
        run = self._run
        if event.error is not None:
            kind = classify(200, event.error, run.engine_model(self.attempt))
        else:
            kind = ErrorKind.BAD_RESPONSE if self.first_output_s is None else ErrorKind.STREAM_CUT
        run.failed(self, kind, 200)

    def end_stream(self) -> None:
        """End a stream whose last event has come."""
        run = self._run
        if not self.tap.complete:  # type: ignore[union-attr]  # set with the mode
            run.failed(self, ErrorKind.BAD_RESPONSE if self.first_output_s is None else ErrorKind.STREAM_CUT, 200)
            return
        self.usage = self.tap.usage  # type: ignore[union-attr]
        if self.attempt.legs is not None:
            self.usage = self.attempt.legs.driver.merged(self.usage)
        if not self.committed:  # held to the end, or an oversized event that nobody looked into
            self._commit()
        run.end_of_body()
        run.completed(self)

    def _write(self, payload: bytes) -> None:
        self._run.client.write(answers.chunk(payload) if self._run.chunked else payload)

    # -- whole answers ------------------------------------------------------------------------------------------------

    def _end_held(self) -> None:
        """G4: half a body is never delivered."""
        run = self._run
        body = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        text = body.strip(b" \t\r\n") if not (body.startswith(b"{") and body.endswith(b"}")) else body
        if not (text.startswith(b"{") and text.endswith(b"}")):
            run.failed(self, ErrorKind.BAD_RESPONSE, self.head.status)  # type: ignore[union-attr]  # a body has a head
            return
        self.usage, is_error = run.dialect.answer_usage(body)
        if is_error:
            run.failed(self, classify(200, body, run.engine_model(self.attempt)), 200)
            return
        if self.attempt.legs is not None:
            body, self.usage = self.attempt.legs.driver.both(body, self.usage)
        if self.usage is None:
            self.events = run.dialect.estimated_tokens(body)
        self.first_output_s, self.committed = self.head_at_s, True
        run.deliver(self, body)
        if self.upstream.asks_load:  # type: ignore[union-attr]  # set when it was asked
            run.gateway.recovery.answered(self.attempt.endpoint, self.head)  # type: ignore[arg-type]  # a body has a head
        run.completed(self)

    def _stream_from_here(self) -> None:
        """L10: an answer too large to hold is relayed from here on and can no longer be replaced."""
        self.mode = Mode.THROUGH
        self.committed = True
        self.first_output_s = self.head_at_s
        body, self._held = b"".join(self._held), []
        self._last_event_s = self._last_output_s = self._last_write_s = self._run.clock()
        self._run.commit(self, body)

    def _refused(self) -> None:
        run = self._run
        head = self.head
        assert head is not None
        body = b"".join(self._held)
        kind = classify(head.status, body, run.engine_model(self.attempt))
        if kind is ErrorKind.BAD_REQUEST and b"stream_options" in body and self._usage_was_our_wish():
            run.open(self.attempt)  # neither a fault nor a retry: the engine has not been asked what the client asks
            return
        if kind not in NOT_AN_ANSWER:  # U5: what an engine says about our credential must never reach the client
            run.remember_answer(head, body if self._held_bytes <= _REFUSAL_HOLD_BYTES else None)
        run.failed(self, kind, head.status, retry_after_s(head.get, run.gateway.now_ms() / 1000))

    def _usage_was_our_wish(self) -> bool:
        request = self._run.request
        if not request.stream or request.include_usage:
            return False
        return self.upstream is not None and self.upstream.refused_usage()
