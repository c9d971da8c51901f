"""The response cache at the gateway: looks up before an attempt, replays, stores what ended well, joins equal requests.

It fails open: whatever it does not understand is a miss with a counter, and never an error. A run that waits for an
equal one holds nothing but its connection; it goes on alone when its leader ends otherwise or its wait is over.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from turnout.core.errors import Outcome
from turnout.core.response_cache.eligibility import (
    MODES,
    Asked,
    Bypass,
    Consent,
    Mode,
    NotAllowed,
    bypass,
    consent,
    semantic_bypass,
)
from turnout.core.response_cache.guard import features
from turnout.core.response_cache.key import CacheKey, Shape, shape_of
from turnout.core.response_cache.single_flight import Flights, Role
from turnout.core.response_cache.store import Bounds, Entry, Match, Place, ResponseStore, Scan
from turnout.core.response_cache.thresholds import threshold_of
from turnout.core.selection.bundle import CacheThresholds
from turnout.core.selection.embedder import HASHGRAM_ID, Embedder, NoText, tail
from turnout.core.selection_options import ResponseCache as Options
from turnout.core.types import Refusal
from turnout.gateway import answers
from turnout.gateway.controls import Controls, not_allowed
from turnout.gateway.principals import Principal
from turnout.gateway.stored_answers import Cost, Ticket, carried, keep_stream, stored_answer

if TYPE_CHECKING:
    from turnout.gateway.instruments import Counts
    from turnout.gateway.response import AttemptResponse
    from turnout.gateway.run import Run
    from turnout.gateway.service import Gateway

_PATHS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/messages"))
OFF_LOOP_FLOATS = 4_000_000
"""Semantic look-ups over more numbers run on a thread: about a millisecond of one core when no row can be ruled out."""
_SCANS_MAX = 64
_PERMISSION = "response_cache="
_STORED_HEADERS = (b"content-type:", b"openai-version:", b"anthropic-")
_NO_BUNDLE_CLUSTER = -1


class Replaying:
    """Looks up, replays and stores whole answers."""

    def __init__(
        self, options: Options, gateway: Gateway, embedder: Embedder, max_prompt_bytes: int, took: Counts
    ) -> None:
        self.took = took
        """Seconds of look-ups."""
        self._options, self._embedder, self._max_prompt_bytes = options, embedder, max_prompt_bytes
        selecting = gateway.selecting
        self._thresholds: Callable[[str], CacheThresholds] = lambda _: CacheThresholds()
        if selecting is not None:
            self._thresholds = selecting.thresholds
            selecting.on_change.append(lambda loaded: self.keep_versions(loaded.blends))
        self._strict = options.guard == "strict" or (options.guard == "auto" and embedder.id == HASHGRAM_ID)
        self.store = ResponseStore(
            Bounds(
                tenants=options.tenants_max,
                buckets_per_tenant=options.buckets_max,
                entries_per_bucket=options.entries_max,
                tenant_bytes=options.tenant_bytes,
                total_bytes=options.total_bytes,
                body_bytes=options.body_max_bytes,
                ttl_s=options.ttl_s,
            )
        )
        self._scanning = 0
        self.off_loop_floats = OFF_LOOP_FLOATS
        self._flights: Flights[Run] = Flights(options.single_flight_max)
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.audit: Callable[[int, Mapping[str, str]], None] = lambda *_: None
        """Hears of every purge."""
        self.cost: Cost = lambda *_: None

    def refused(self, principal: Principal, controls: Controls) -> Refusal | None:
        """Return the 403 of a request that asks for more than its key allows, or for a looser threshold."""
        try:
            self._consent(principal, controls, "")
        except NotAllowed as error:
            return not_allowed(error.param, str(error))
        return None

    def look(self, run: Run) -> bool:
        """Look up before scheduling; True: the run was answered, or waits for an equal one."""
        extra = run.extra
        assert extra is not None  # only runs with an Extra come here
        if extra.ticket is not None:
            return False  # it has looked and waited: no one waits twice
        given = self._consent(run.principal, extra.controls, run.prepared.cache_control)
        reason, ticket = self._ticket(run, given)
        if ticket is None:
            self.counts["bypass", str(reason)] += 1
            self.counts["lookup", "bypass"] += 1
            self._told(run, b"bypass")
            return False
        started_s = run.clock()
        replayed, scan = self._exact(run, ticket, started_s), None
        if not replayed and given.looks and ticket.place is not None:
            scan = self._scan(ticket, ticket.place)
            if scan.floats < self.off_loop_floats:
                replayed = self._semantic(run, ticket, scan, scan.run())
            elif self._scanning < _SCANS_MAX:
                extra.ticket = ticket
                self._off_loop(run, ticket, scan, started_s)
                return True
        self.took.observe(run.clock() - started_s)
        return replayed or self._missed(run, ticket)

    def keep(self, run: Run, response: AttemptResponse, body: bytes) -> None:
        """Remember the answer that a run delivers, until its end says whether it may be stored."""
        ticket = run.extra.ticket if run.extra is not None else None
        if ticket is None or not ticket.consent.stores:
            return
        lines = response.head.prepared[0].split(b"\r\n") if response.head is not None else []
        kept = [line.partition(b": ") for line in lines if line.startswith(_STORED_HEADERS)]
        ticket.head = tuple([(name, value) for name, _, value in kept])
        ticket.body = body

    def ended(self, run: Run, outcome: Outcome) -> None:
        """Store what ended well, and let go on whoever waited for it."""
        extra = run.extra
        ticket = extra.ticket if extra is not None else None
        if ticket is None:
            return
        if ticket.timer is not None:
            ticket.timer.cancel()
        if ticket.follows:
            self._flights.leave(ticket.key, run)
        # What was relayed with the totals of a session is that session's.
        stream = run.request.stream and not run.prepared.totals
        if stream and ticket.consent.stores and outcome is Outcome.COMPLETED:
            keep_stream(run, ticket)
        if ticket.body is not None:
            self._store(run, ticket, outcome)
        if ticket.leads:
            for follower in self._flights.land(ticket.key):
                run.gateway.loop.call_soon(self._released, follower)

    def keep_versions(self, versions: Mapping[str, object]) -> None:
        """Drop the answers of bundle versions that are no longer loaded."""
        self.store.drop(lambda key: not key.bundle_version or key.bundle_version in versions, "version")

    def cache_document(self) -> dict[str, Any]:
        """Return what each tenant holds, for the admin listener."""
        tenants = {
            name: {"entries": held.entries, "bytes": held.bytes, "matches": held.matches, "saved_nusd": held.saved_nusd}
            for name, held in sorted(self.store.stats().items())
        }
        return {"entries": self.store.entries, "bytes": self.store.bytes, "tenants": tenants}

    def purge(self, filters: Mapping[str, str]) -> int:
        """Drop the entries that match all of `tenant`, `model` and `bundle` that are given; all of them without any."""

        def kept(key: CacheKey) -> bool:
            seen = {"tenant": key.tenant, "model": key.model, "bundle": key.bundle_version}
            return any(seen[name] != value for name, value in filters.items())

        dropped = self.store.drop(kept, "purge")
        self.audit(dropped, filters)
        return dropped

    # -- look-up ------------------------------------------------------------------------------------------------------

    def _consent(self, principal: Principal, controls: Controls, cache_control: str) -> Consent:
        permission = max(
            (p.removeprefix(_PERMISSION) for p in principal.permissions if p.startswith(_PERMISSION)),
            key=lambda name: MODES.get(name, Mode.OFF),
            default="off",
        )
        return consent(
            permission, controls.cache_match, controls.cache_threshold, self._options.threshold, cache_control
        )

    def _ticket(self, run: Run, given: Consent) -> tuple[Bypass | None, Ticket | None]:
        request, extra = run.request, run.extra
        assert extra is not None  # only runs with an Extra come here
        selection = extra.chosen.selection if extra.chosen is not None else None
        asked = Asked(
            tenant_known=bool(run.principal.key_id),
            path_allowed=request.path in _PATHS,
            stream=request.stream,
            streams_served=self._options.stream != "off",
            choices=request.n,
            reason="named" if selection is None else str(selection.reason),
        )
        found = shape_of(request.body, run.prepared.forward) if given.mode is not Mode.OFF else None
        reason = bypass(given.mode, asked, found)
        if reason is not None or found is None:
            return reason, None
        if not (given.looks or given.stores):
            return Bypass.NO_STORE, None
        entry = run.gateway.catalogue.entry(run.model)
        key = CacheKey(
            tenant=run.principal.tenant,
            dialect=request.dialect,
            path=request.path,
            kind="sse" if request.stream else "json",
            model=run.model,
            weight_version=entry.weight_version,
            bundle_version="" if selection is None else selection.bundle_version,
            knobs_hash=0 if selection is None else selection.knobs_hash,
            **{name: getattr(found.digests, name) for name in found.digests.__struct_fields__},
        )
        place = None
        if given.mode is Mode.SEMANTIC:
            reason = semantic_bypass(asked, found)
            place = self._place(run, found) if reason is None else None
            if place is None:
                self.counts["bypass", str(reason or Bypass.NO_EMBEDDING)] += 1
        return None, Ticket(key, place, given)

    def _place(self, run: Run, found: Shape) -> Place | None:
        chosen = run.extra.chosen if run.extra is not None else None
        text = features(found.text)
        if chosen is not None and chosen.vector is not None and chosen.text == found.text:
            return Place(chosen.selection.clusters, chosen.embedder, chosen.vector, text)
        if not self._embedder.inline:  # it would hold up everybody: what selection did not embed has no vector
            return None
        try:
            vector = self._embedder.embed(tail(found.text, self._max_prompt_bytes))
        except NoText:
            return None
        return Place((_NO_BUNDLE_CLUSTER,), self._embedder.id, vector, text)

    def _missed(self, run: Run, ticket: Ticket) -> bool:
        """Go on without an answer; True: the run waits for an equal one."""
        assert run.extra is not None  # only runs with an Extra come here
        self.counts["lookup", "miss"] += 1
        run.extra.ticket = ticket
        self._told(run, b"miss")
        return ticket.consent.looks and not run.request.stream and self._joins(run, ticket)

    def _keys(self, ticket: Ticket) -> tuple[CacheKey, ...]:
        """The keys to look under: the request's own kind first, then the one that can be converted."""
        key = ticket.key
        if self._options.stream != "convert":
            return (key,)
        return key, msgspec.structs.replace(key, kind="json" if key.kind == "sse" else "sse")

    def _exact(self, run: Run, ticket: Ticket, now: float) -> bool:
        if not ticket.consent.looks:
            return False
        for key in self._keys(ticket):
            match = self.store.exact(key, now)
            if match is not None and self._replay(run, match, key.kind):
                return True
        return False

    def _scan(self, ticket: Ticket, place: Place) -> Scan:
        own = self._thresholds(ticket.key.bundle_version)
        least = threshold_of(self._options.threshold, own.default, own.per_cluster, ticket.consent.threshold)
        return self.store.scan(ticket.key, place, least)

    def _semantic(self, run: Run, ticket: Ticket, scan: Scan, found: list[tuple[float, Entry]]) -> bool:
        match = self.store.pick(scan, found, run.clock(), strict=self._strict)
        return match is not None and self._replay(run, match, ticket.key.kind)

    def _off_loop(self, run: Run, ticket: Ticket, scan: Scan, started_s: float) -> None:
        """Compare on a thread, as a millisecond of it would hold up every other request."""
        gateway = run.gateway
        gateway.runs.add(run)
        run.client.attach(run)
        self._scanning += 1

        def compared(future: asyncio.Future[list[tuple[float, Entry]]]) -> None:
            self._scanning -= 1
            if run.outcome is not None or future.cancelled():
                return
            if future.exception() is not None:  # a doubt is a miss
                self.counts["lookup", "fault"] += 1
            elif self._semantic(run, ticket, scan, future.result()):
                self.took.observe(run.clock() - started_s)
                return
            self.took.observe(run.clock() - started_s)
            if not self._missed(run, ticket):
                run.begin_again()

        gateway.loop.run_in_executor(None, scan.run).add_done_callback(compared)

    # -- replay -------------------------------------------------------------------------------------------------------

    def _replay(self, run: Run, match: Match, kind: str) -> bool:
        """Answer with a stored answer of this kind; False: it cannot be carried over to what was asked for."""
        answer, extra = match.answer, run.extra
        assert extra is not None  # only runs with an Extra come here
        dialect = run.dialect
        body = carried(dialect.name, answer, kind, stream=run.request.stream, usage=run.request.include_usage)
        if body is None:
            self.counts["lookup", "unconverted"] += 1
            return False
        extra.told = extra.told.replace(b"x-turnout-cache: miss\r\n", b"")
        self.counts["lookup", match.kind] += 1
        saved = answer.cost_nusd
        self.store.matched(run.principal.tenant, saved or 0)
        extra.replayed = {
            "cache_match": match.kind,
            "cache_similarity_e3": round(match.similarity * 1000) if match.kind == "semantic" else None,
            "cache_source": answer.source,
            "saved_nusd": saved,
            "cost_nusd": 0,
            "cost_basis": "cache",
            "tokens_in": answer.tokens_in,
            "tokens_out": answer.tokens_out,
            "tokens_cached": answer.tokens_cached,
        }
        if run.prepared.totals and run.gateway.totals is not None:
            body = run.gateway.totals.replayed(run, body)
        told = b"x-turnout-cache: %b\r\nx-turnout-cache-age-s: %d\r\n" % (match.kind.encode(), int(match.age_s))
        if match.kind == "semantic":
            told += b"x-turnout-cache-similarity: %.3f\r\n" % match.similarity
        if run.request.stream:
            head = answers.STREAM_HEADERS
        elif kind == "sse":
            head = answers.JSON_TYPE
        else:
            head = b"".join([b"%b: %b\r\n" % pair for pair in answer.head])
        own = b"x-request-id: %b\r\nx-turnout-decision: %b\r\nx-turnout-model: %b\r\n" % (
            run.request_id,
            run.call_id.encode(),
            run.model.encode(),
        )
        if dialect.request_id_header:
            own += b"request-id: %b\r\n" % run.request_id
        run.replay(answers.whole(answer.status, head + own + extra.told + told, body))
        return True

    def _told(self, run: Run, result: bytes) -> None:
        assert run.extra is not None  # only runs with an Extra come here
        run.extra.told += b"x-turnout-cache: %b\r\n" % result

    # -- single flight ------------------------------------------------------------------------------------------------

    def _joins(self, run: Run, ticket: Ticket) -> bool:
        role = self._flights.join(ticket.key, run)
        ticket.leads, ticket.follows = role is Role.LEAD, role is Role.FOLLOW
        if role is not Role.FOLLOW:
            return False
        gateway = run.gateway
        gateway.runs.add(run)
        run.client.attach(run)
        wait_s = min(self._options.single_flight_wait_ms / 1000, run.total_s())
        ticket.timer = gateway.loop.call_later(wait_s, self._tired, run)
        return True

    def _tired(self, run: Run) -> None:
        """End a wait that took too long: the run goes on alone."""
        assert run.extra is not None  # only runs with a ticket wait
        ticket = run.extra.ticket
        assert ticket is not None  # as above
        if run.outcome is None and ticket.follows:
            self._flights.leave(ticket.key, run)
            self._alone(run, ticket, "tired")

    def _released(self, run: Run) -> None:
        """Go on after the leader has ended: with its answer, or alone."""
        assert run.extra is not None  # only runs with a ticket wait
        ticket = run.extra.ticket
        assert ticket is not None  # as above
        if run.outcome is not None or not ticket.follows:
            return
        ticket.follows = False
        if not self._exact(run, ticket, run.clock()):
            self._alone(run, ticket, "alone")
            return
        self.counts["follower", "replayed"] += 1

    def _alone(self, run: Run, ticket: Ticket, result: str) -> None:
        ticket.follows = False
        if ticket.timer is not None:
            ticket.timer.cancel()
        self.counts["follower", result] += 1
        run.begin_again()

    # -- storing ------------------------------------------------------------------------------------------------------

    def _store(self, run: Run, ticket: Ticket, outcome: Outcome) -> None:
        answer = stored_answer(run, ticket, outcome, self.cost, store_tool_calls=self._options.store_tool_calls)
        if answer is None:
            self.counts["store", "unfit"] += 1
            return
        stored = self.store.put(ticket.key, answer, run.clock(), ticket.place)
        self.counts["store", "stored" if stored else "too_large"] += 1
