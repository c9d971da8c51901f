"""The life of a request behind the door (coordinator §5): accepted, sent, answered once, or failed once.

One record per attempt by server id and one per request at its client: nothing else may hold a request, so that with
no open request every map is empty. Whatever ends an attempt goes through `_detach`, and whatever ends a request
through `_close`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from turnout.coordinator.affinity import Chooser
from turnout.coordinator.books import COMPLETED, Books
from turnout.coordinator.numbers import ServerIds
from turnout.coordinator.peers import Attempt, Client, Engine, Request, Send
from turnout.coordinator.roster import Roster
from turnout.coordinator.schedule_log import Scheduled, ScheduleLog
from turnout.coordinator.tally import Tally
from turnout.core.coordinator_options import Coordinator
from turnout.engines import megatron as wire
from turnout.engines.megatron import Header
from turnout.engines.megatron_framed import Dialect
from turnout.engines.megatron_messages import Message

OUR_FAULT = frozenset(
    {"no_engine", "saturated", "engine_lost", "deadline", "draining", "pending_full", "internal", "aborted"}
)
"""Reasons that say nothing against the request: it may be sent again."""


class Requests:
    """All open requests of one door. Messages to carry out are appended to `out`."""

    def __init__(
        self,
        options: Coordinator,
        roster: Roster,
        chooser: Chooser,
        tally: Tally,
        out: list[Send],
        *,
        first_id: int,
        timer: Callable[[], float],
        wall_s: Callable[[], float],
        dialect: Dialect,
        detokenize: Callable[[list[int]], str] | None = None,
    ) -> None:
        self.options = options
        self.open: dict[int, Attempt] = {}
        self.pending: dict[Request, None] = {}
        self.log = ScheduleLog(chooser.upstream_policy, options.schedule_max)
        self.draining = False
        self.books: Books | None = None
        self._complete = not options.deterministic
        self._roster = roster
        self._chooser = chooser
        self._tally = tally
        self._out = out
        self._ids = ServerIds(first_id)
        self._uid = f"turnout-{first_id:08x}"
        self._failures = 0
        self._timer = timer
        self._wall_s = wall_s
        self._dialect = dialect
        self._detokenize = detokenize
        self._aborting: dict[Attempt, float] = {}
        self._timed: dict[Request, None] = {}

    def accept(self, request: Request, now: float) -> None:
        """Open a validated request and send it, or let it wait when no engine is there."""
        request.client.open[request.number] = request
        self._tally.accepted += 1
        if self.books is not None and request.pinned is None:
            self.books.opened(request)
        if self.options.request_timeout_s:
            self._timed[request] = None
        if self.draining:
            self.fail(request, "draining")
        else:
            self._send_or_wait(request, now)

    def engines_changed(self, now: float) -> None:
        """Send what waits, oldest first, while somebody takes it."""
        while self.pending and not self._must_wait():
            request = next(iter(self.pending))
            del self.pending[request]
            self._dispatch(request, self._roster.eligible, now)

    def answered(self, engine: Engine, message: Message, now: float) -> list[int]:
        """Deliver final replies; returns the numbers that belong to another engine."""
        foreign = []
        for item, part in zip(message.values, message.raw, strict=True):
            attempt = self._owned(engine, item["request_id"])
            if attempt is None:
                if item["request_id"] in self.open:
                    foreign.append(item["request_id"])
                continue
            request = attempt.request
            self._count_cached(attempt, item)
            self._note_end(request, COMPLETED)
            self._detach(attempt)
            self._close(request)
            self._tally.completed += 1
            whole: msgspec.Raw | bytes = part
            if self._detokenize is not None and attempt.server_id not in message.as_they_are:
                whole = self._with_text(item, self._detokenize)
            self._deliver(request, Header.ENGINE_REPLY, whole)
        engine.heard_at = now
        return foreign

    def progressed(self, engine: Engine, message: Message, now: float) -> list[int]:
        """Deliver partial replies; returns the numbers that belong to another engine."""
        foreign = []
        for item, part in zip(message.values, message.raw, strict=True):
            attempt = self._owned(engine, item["request_id"])
            if attempt is None:
                if item["request_id"] in self.open:
                    foreign.append(item["request_id"])
                continue
            request = attempt.request
            if request.aborted:
                self._tally.dropped["aborted"] += 1
                continue
            attempt.first_partial = True
            request.parts = ()  # it can no longer be resent: the client has seen a part of it
            self._deliver(request, Header.ENGINE_REPLY_PARTIAL, part)
        engine.heard_at = now
        return foreign

    def abort(self, request: Request, now: float) -> None:
        """Pass a client's abort on; the attempt stays open for its final reply."""
        if request.aborted:
            return
        request.aborted = True
        self._tally.aborted += 1
        attempt = request.attempt
        if attempt is None:
            self.fail(request, "aborted")
            return
        self._aborting[attempt] = now + self.options.abort_wait_s
        self._tell(attempt)

    def forget(self, client: Client) -> None:
        """The client is gone: its engines are told, nobody is answered."""
        for number in list(client.open):
            self.abandon(client, number)

    def abandon(self, client: Client, number: int) -> None:
        """Close one request that nobody waits for; its engine is told."""
        request = client.open.get(number)
        if request is None:
            return
        self._note_end(request, "client_gone")
        if request.attempt is not None:
            if not request.aborted:
                self._tell(request.attempt)
            self._detach(request.attempt)
        self._close(request)
        self._tally.failed["client_gone"] += 1

    def settle(self, engine: Engine, now: float) -> None:
        """The engine is gone and so are its replies: resend what nobody has seen a part of, fail the rest."""
        for attempt in list(engine.open.values()):
            request = attempt.request
            if self.books is not None:
                self.books.left(attempt)
            self._detach(attempt)
            if request.aborted:
                self.fail(request, "aborted")
            elif attempt.first_partial or request.pinned is not None:
                self.fail(request, "engine_lost")
            elif request.tries >= self.options.attempts:
                self._tally.exhausted += 1
                self.fail(request, "engine_lost")
            else:
                self._send_or_wait(request, now)

    def unsent(self, server_id: int, now: float) -> None:
        """The message that opened this attempt never left: the next engine, and no try is counted."""
        attempt = self.open.get(server_id)
        if attempt is None:
            return
        request = attempt.request
        if attempt.placement is not None:
            self._chooser.index.rollback(attempt.placement)
        self._detach(attempt)
        request.tries -= 1
        if request.aborted or request.pinned is not None:
            self.fail(request, "aborted" if request.aborted else "engine_lost")
        else:
            self._send_or_wait(request, now)

    def expire(self, now: float) -> None:
        """End what has waited long enough: for an engine, for the reply to an abort, for its deadline."""
        options = self.options
        for request in list(self.pending):
            if now - request.pending_at < options.empty_wait_s:
                break  # in the order they began to wait
            is_full = any(engine.saturated for engine in self._roster.live.values())
            self.fail(request, "saturated" if is_full else "no_engine")
        for attempt, until in list(self._aborting.items()):
            if now < until:
                break
            self.fail(attempt.request, "aborted")
        if options.request_timeout_s:
            for request in list(self._timed):
                if now - request.accepted_at < options.request_timeout_s:
                    break
                if request.attempt is not None and not request.aborted:
                    self._tell(request.attempt)
                self.fail(request, "deadline")

    def fail(self, request: Request, reason: str) -> None:
        """End a request without an engine's reply; its client hears of it once."""
        self._note_end(request, reason)
        if request.attempt is not None:
            self._detach(request.attempt)
        self._close(request)
        self._tally.failed[reason] += 1
        self.refuse(request.client, request.number, reason)

    def refuse(self, client: Client, number: int, reason: str) -> None:
        """Answer a request that is not open: as a failed reply, or as our own client reads it."""
        if client.ours:
            self._out.append(Send(client.identity, wire.refused(number, reason)))
            return
        self._failures += 1
        reply = wire.failed_reply(
            number,
            uid=f"{self._uid}{self._failures:08x}",
            reason=reason,
            transient=reason in OUR_FAULT,
            timestamp=self._wall_s(),
        )
        payload, *bodies = self._dialect.delivered(Header.ENGINE_REPLY, number, wire.item(reply))
        self._out.append(Send(client.identity, payload, bodies=tuple(bodies)))

    def drain(self) -> None:
        """Take no more; what waits ends at once."""
        self.draining = True
        for request in list(self.pending):
            self.fail(request, "draining")

    # -- inside -------------------------------------------------------------------------------------------------------

    def _note_end(self, request: Request, reason: str) -> None:
        if self.books is not None:
            self.books.closed(request, reason)

    def _must_wait(self) -> bool:
        if not self._complete:
            self._complete = len(self._roster) >= self.options.expected_engines
        return not self._complete or not self._roster.eligible

    def _send_or_wait(self, request: Request, now: float) -> None:
        if request.pinned is not None:
            if request.pinned in self._roster.eligible:
                self._dispatch(request, [request.pinned], now)
            else:
                self.fail(request, "engine_lost")
        elif not self._must_wait():
            self._dispatch(request, self._roster.eligible, now)
        elif len(self.pending) >= self.options.pending_max:
            self.fail(request, "pending_full")
        else:
            request.pending_at = now
            self.pending[request] = None

    def _dispatch(self, request: Request, engines: list[Engine], now: float) -> None:
        """Open an attempt on the best engine. One that lost this request has left, so it is not among them."""
        started = self._timer()
        choice = self._chooser.choose(request.keys, engines, now)
        self._tally.schedule_s.observe(self._timer() - started)
        engine = choice.engine
        if not request.scheduled:
            request.scheduled = True
            self._tally.lookups[choice.result] += 1
            if choice.fallback:
                self._tally.fallbacks[self._chooser.policy, choice.fallback] += 1
        self._tally.resent += request.tries > 0
        request.tries += 1
        attempt = Attempt(self._ids.take(self.open), request, engine, now)
        attempt.matched_tokens = choice.matched_blocks * self.options.block_tokens
        self.open[attempt.server_id] = attempt
        engine.open[attempt.server_id] = attempt
        request.attempt = attempt
        attempt.placement = self._chooser.record(request.keys, engine, now)
        payload, *bodies = self._dialect.forwarded(request.header, attempt.server_id, request.parts)
        self._out.append(Send(engine.identity, payload, attempt.server_id, bodies=tuple(bodies)))
        if self.options.schedule_path:
            self.log.add(
                Scheduled(
                    attempt.server_id,
                    self._roster.rank(engine),
                    self._chooser.hashes(request.tokens, self.options.block_tokens),
                    engine.name,
                    choice.matched_blocks,
                    request.tries,
                    int(self._wall_s() * 1000),
                )
            )

    def _owned(self, engine: Engine, number: int) -> Attempt | None:
        attempt = self.open.get(number)
        if attempt is None:
            self._tally.dropped["late" if self._ids.was_ours(number) else "unknown"] += 1
        elif attempt.engine is not engine:
            self._tally.dropped["foreign"] += 1
            return None
        return attempt

    def _count_cached(self, attempt: Attempt, item: dict[str, Any]) -> None:
        cached = item.get("num_cached_tokens")
        if type(cached) is int and 0 <= cached <= attempt.request.tokens and attempt.request.tries == 1:
            self._tally.predicted_tokens += min(attempt.matched_tokens, attempt.request.tokens)
            self._tally.realised_tokens += cached

    def _with_text(self, item: dict[str, Any], detokenize: Callable[[list[int]], str]) -> bytes:
        """A finished map with its text, as upstream's coordinator writes it; nil when that fails."""
        try:
            text: str | None = detokenize(item["generated_tokens"])
        except Exception:  # noqa: BLE001 - an engine may send anything as tokens, a vocabulary raise anything of it
            self._tally.detokenize_failures += 1
            text = None
        return wire.item({**item, "generated_text": text})

    def _tell(self, attempt: Attempt) -> None:
        """Send the engine an abort, if it is still there."""
        engine = attempt.engine
        if self._roster.live.get(engine.identity) is engine:
            self._out.append(Send(engine.identity, wire.abort(attempt.server_id)))

    def _detach(self, attempt: Attempt) -> None:
        del self.open[attempt.server_id]
        del attempt.engine.open[attempt.server_id]
        self._aborting.pop(attempt, None)
        self._ids.close(attempt.server_id)
        attempt.request.attempt = None

    def _close(self, request: Request) -> None:
        del request.client.open[request.number]
        self.pending.pop(request, None)
        self._timed.pop(request, None)

    def _deliver(self, request: Request, header: Header, item: msgspec.Raw | bytes) -> None:
        payload, *bodies = self._dialect.delivered(header, request.number, item)
        self._out.append(Send(request.client.identity, payload, bodies=tuple(bodies)))
