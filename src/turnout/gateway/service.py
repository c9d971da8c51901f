"""The public door: which path means what, who may ask, and the state that all runs share (request-path §1)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from turnout.core import options
from turnout.core.admission.spending import Spending
from turnout.core.errors import ErrorKind, Outcome
from turnout.core.facts import CallFact, OpenedCall, RouteKey
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet
from turnout.core.kit.ulid import UlidSource
from turnout.core.pricing import PriceBook
from turnout.core.retry_budget import RetryBudget
from turnout.core.scheduling.decision import Decision
from turnout.core.scheduling.packing import pack
from turnout.core.types import Refusal
from turnout.dialects.dialect import PATHS
from turnout.gateway import answers, authority
from turnout.gateway.asking import Asker
from turnout.gateway.catalogue import Catalogue
from turnout.gateway.controls import resolve
from turnout.gateway.counts import RelayCounts
from turnout.gateway.extra import Extra
from turnout.gateway.facts import opened_call
from turnout.gateway.instruments import Instruments, Sources
from turnout.gateway.listing import MODEL, MODELS, models_document
from turnout.gateway.members import with_members
from turnout.gateway.prepare import Prepared, client_id
from turnout.gateway.principals import Principals
from turnout.gateway.reading import SESSION, USAGE, Reading
from turnout.gateway.recovery import Recovery, RecoveryOptions
from turnout.gateway.route import route
from turnout.gateway.run import Run
from turnout.gateway.session_totals import SessionTotals
from turnout.gateway.tokenizing import Tokenizing
from turnout.gateway.upstream import Reach, Upstream
from turnout.http.head import Head
from turnout.http.outbox import running_outbox
from turnout.http.server import Connection

if TYPE_CHECKING:
    from turnout.gateway.response_cache import Replaying
    from turnout.gateway.selecting import Selecting

_TICK_S: Final = 0.1
_ROUTE: Final = frozenset((b"/v1/route", b"/v1/route/preview"))
_PUBLIC: Final = frozenset((b"/", b"/health", b"/ready"))
_DRAIN_RETRY_S: Final = 15


class Gateway:
    """Serves the public listener (`http.handler.Handler`)."""

    def __init__(
        self,
        *,
        server: options.Server,
        relay: options.Relay,
        timeout: options.Timeout,
        retry: options.Retry,
        prefix: options.Prefix,
        fleet: Fleet,
        recovery: RecoveryOptions | None = None,
        catalogue: Catalogue,
        principals: Principals,
        upstreams: dict[str, Reach],
        meter: Instruments,
        record: Callable[[CallFact], None],
        sources: Sources,
        decisions_max: int,
        router_id: str,
    ) -> None:
        self.relay_options, self.timeout_options, self.retry_options = relay, timeout, retry
        self.fleet, self.catalogue, self.upstreams = fleet, catalogue, upstreams
        # No attempt can be due earlier, so opening one computes no deadline of its own: the tick does.
        self.first_look_s = min(catalogue.quickest_s, relay.keepalive_s)
        self.meter = meter
        self.token_gap = meter.itl.observe
        self.router_id = router_id
        self.clock, self.now_ms, self.rng = sources.clock, sources.now_ms, sources.rng
        self.loop = asyncio.get_running_loop()
        self.runs: set[Run] = set()
        self.relayed = RelayCounts()
        self.ready, self.draining = True, False
        self.decisions: deque[tuple[str, Decision]] = deque(maxlen=decisions_max)
        self.on_unreachable: Callable[[EndpointState], None] = lambda _: None
        # Set by the composition root where they are configured; what is not is never imported.
        self.selecting: Selecting | None = None
        self.response_cache: Replaying | None = None
        self.told = b""
        self._server, self._prefix = server, prefix
        self.principals = principals
        self.recovery = Recovery(self, recovery or RecoveryOptions())
        self._record = record
        self._ended: list[CallFact] = []
        self._outbox = running_outbox()
        # Set where there is a ledger: hears of every accepted request before its first attempt.
        self.accepted: Callable[[OpenedCall], None] | None = None
        self.reading: Reading | None = None
        self.totals: SessionTotals | None = None
        self.spending: Spending | None = None
        self.degraded: Callable[[], bool] = bool
        self.unkept: Callable[[], bool] | None = None
        self.book: Callable[[], PriceBook | None] = _no_book
        self._ids = UlidSource()
        self.entropy = sources.entropy
        self.budgets: dict[str, RetryBudget] = {}
        self.asker = Asker(prefix, fleet, catalogue)
        self.tokenizing = Tokenizing(prefix, lambda: self.asker, upstreams) if prefix.tokenize == "auto" else None
        self._routes: dict[tuple[str, str], RouteKey] = {}
        self.retired: list[Upstream] = []
        self._ticker: asyncio.TimerHandle | None = None

    # -- the door (http.handler.Handler) -------------------------------------------------------------------------------

    def on_head(self, head: Head) -> Refusal | None:
        """Check drain, path and method, key, and headers, in this order."""
        path, method = head.path, head.method
        if path in _PUBLIC:
            return None if method in (b"GET", b"HEAD") else _not_allowed(method, "GET, HEAD")
        if self.draining and (path in PATHS or path in _ROUTE or path == MODELS or path.startswith(MODEL)):
            return Refusal(
                503, "draining", "The router is shutting down.", None, "overloaded", _DRAIN_RETRY_S, close=True
            )
        if path in PATHS or (path in _ROUTE and self.selecting is not None):
            if method != b"POST":
                return _not_allowed(method, "POST")
        elif path == MODELS or path.startswith(MODEL) or self._of_use(path):
            if method != b"GET":
                return _not_allowed(method, "GET")
        else:
            return Refusal(404, "not_found", "There is nothing at this path.", close=method in (b"TRACE", b"CONNECT"))
        prepared: Prepared | None = head.prepared
        if prepared is None:
            prepared = head.prepared = Prepared(head)
        identity = prepared.identity
        if identity is None or prepared.snapshot is not self.principals:
            identity = prepared.identity = self.principals.identify(prepared.carriers)
            # A key that expires is looked up every time; the others keep their meaning as long as the snapshot.
            prepared.snapshot = None if self.principals.expiring else self.principals
        if type(identity) is Refusal:
            return identity
        refusal: Refusal | None = prepared.refusal
        if prepared.policy and refusal is None and _POLICY_PERMISSION not in identity.permissions:  # type: ignore[union-attr]  # no Refusal
            return _POLICY_FORBIDDEN
        return refusal

    def on_request(self, connection: Connection, head: Head, body: bytes) -> None:
        """Serve a complete request."""
        path = head.path
        dialect = PATHS.get(path)
        if dialect is not None:
            request = dialect.decode(path, body, self._server.json_depth_max, self.catalogue.default)
            if type(request) is Refusal:
                self._answer(connection, self.refusal(path, request, head))
                return
            run = Run(self, connection, head, request, head.prepared.identity)  # type: ignore[arg-type]
            if request.has_controls or head.prepared.controls:  # type: ignore[union-attr]  # no Refusal
                extra = self._controlled(run, head)
                if isinstance(extra, Refusal):
                    self._answer(connection, self.refusal(path, extra, head))
                    return
                run.extra = extra
            try:
                self._accept(run)
            except Exception as error:  # noqa: BLE001 - as the next one
                self._broken(run, error)
        elif path in _PUBLIC:
            self._public(connection, head)
        elif path in _ROUTE:
            route(self, connection, head, body, self._server.json_depth_max)
        elif self.reading is not None and self._of_use(path):
            self.reading.ask(connection, head)
        else:
            self._models(connection, head)

    def _accept(self, run: Run) -> None:
        """Open the exchange: whatever happens from here on, it has one row (request-path §1, from step 9 on)."""
        over = authority.check(run) if self.unkept is not None or run.principal.budget_nusd is not None else None
        if self.accepted is not None:
            self.accepted(opened_call(run))
            if run.prepared.totals and self.totals is not None:
                self.totals.begin(run)
        if over is None:
            run.begin()
        else:
            authority.refuse(run, over)

    def _of_use(self, path: bytes) -> bool:
        return self.reading is not None and (path == USAGE or path.startswith(SESSION))

    def _controlled(self, run: Run, head: Head) -> Extra | Refusal:
        request, prepared = run.request, with_members(head, run.request)
        if isinstance(prepared, Refusal):
            return prepared
        run.reread(prepared)
        controls = resolve(prepared.controls, request.body if request.has_controls else None, run.principal)
        if isinstance(controls, Refusal):
            return controls
        cache = self.response_cache
        refused = cache.refused(run.principal, controls) if cache is not None else None
        return refused or Extra(controls)

    def refusal(self, path: bytes, refusal: Refusal, head: Head | None) -> bytes:
        """Word a refusal and count it."""
        self.meter.refused(refusal.code)
        return answers.refusal(path, refusal, self._request_id(head))

    # -- what runs use ------------------------------------------------------------------------------------------------

    def next_id(self, now_ms: int) -> str:
        """Return a new id of exchange and decision."""
        ids = self._ids
        return ids.next(now_ms, self.entropy() if now_ms > ids.ms else 0)

    def budget(self, model: str) -> RetryBudget:
        """Return the retry budget of a resolved model."""
        budget = self.budgets.get(model)
        if budget is None:
            budget = self.budgets[model] = RetryBudget(self.retry_options)
        return budget

    def decided(self, run: Run, decision: Decision) -> None:
        """Count and keep a first decision, so that it can be explained afterwards."""
        self.meter.decided(decision, run.decide_s)
        pack(decision)
        self.decisions.append((run.call_id, decision))

    def record(self, fact: CallFact) -> None:
        """Pass one closed exchange to metrics and ledger: the one recording function of every path."""
        self.meter.closed(fact)
        if self.totals is not None and fact.session_id is not None:
            self.totals.ended(fact)
        if self.spending is not None and self.spending.days:
            self.spending.ended(fact)
        # The loop hands the last bytes to the kernel at the end of its round. The row follows in the next one, so that
        # a process killed in between has no row that says of a cut answer that it was complete.
        if not self._ended:
            self.loop.call_soon(self._pass_on)
        self._ended.append(fact)
        if fact.cls == "ok" and len(fact.attempts) == 1:
            return
        for attempt in fact.attempts:
            if attempt.error_kind in _UNREACHABLE and attempt.route is not None:
                endpoint = self.fleet.endpoints.get(attempt.route.replica)
                if endpoint is not None:
                    self.on_unreachable(endpoint)

    def _pass_on(self) -> None:
        self._outbox.flush()
        ended, self._ended = self._ended, []
        for fact in ended:
            self._record(fact)

    def route(self, endpoint: EndpointState, model: str) -> RouteKey:
        """Return the one identity of a route, made once."""
        key = (endpoint.name, model)
        route = self._routes.get(key)
        if route is None:
            replica = "" if endpoint.provider else endpoint.name
            route = self._routes[key] = RouteKey(endpoint.provider, model, replica)
        return route

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin ticking: one timer for the deadlines of all runs."""
        self._ticker = self.loop.call_later(_TICK_S, self._tick)

    def swapped(self, principals: Principals) -> None:
        """Hear that the configuration was swapped: what was derived from the old one is derived again."""
        self.principals = principals
        authority.watch(self)
        self.asker = Asker(self._prefix, self.fleet, self.catalogue)
        self._routes.clear()
        self.first_look_s = min(self.catalogue.quickest_s, self.relay_options.keepalive_s)

    def interrupt_all(self) -> None:
        """End every open exchange with `shutdown` (X3)."""
        for run in list(self.runs):
            run.interrupt(Outcome.SHUTDOWN, ErrorKind.CANCELLED)

    def stop(self) -> None:
        """Stop ticking and close every connection to engines."""
        self._pass_on()
        if self._ticker is not None:
            self._ticker.cancel()
        for upstream in (*self.upstreams.values(), *self.retired):
            upstream.pool.close()

    def _tick(self) -> None:
        self._ticker = self.loop.call_later(_TICK_S, self._tick)
        now = self.clock()
        self.recovery.health.woke(now)
        if self.retired:
            self.retired = [upstream for upstream in self.retired if upstream.pool.in_use()]
        for run in [run for run in self.runs if run.next_at_s <= now]:
            if run.outcome is None:
                try:
                    run.tick(now)
                except Exception as error:  # noqa: BLE001 - a bug ends its own exchange only: the next run is ticked
                    self._broken(run, error)
        self.recovery.tick(now)
        for upstream in self.upstreams.values():
            upstream.pool.sweep(self.loop.time())
        self.fleet.index.advance(now)

    def _broken(self, run: Run, error: Exception) -> None:
        """End the exchange that a bug of ours hit, with an alarm (DESIGN §4)."""
        self.loop.call_exception_handler({"message": "an exchange met a bug", "exception": error})
        try:
            run.interrupt(Outcome.INTERNAL_ERROR, ErrorKind.INTERNAL)
        except Exception:  # noqa: BLE001 - nothing more can be said to this client
            run.client.abort()

    # -- small answers ------------------------------------------------------------------------------------------------

    def _public(self, connection: Connection, head: Head) -> None:
        if head.path == b"/ready" and not self.ready:
            status, body = 503, b'{"status":"draining"}'
        elif head.path == b"/ready":
            status, body = 200, b'{"status":"degraded"}' if self.degraded() else b'{"status":"ready"}'
        elif head.path == b"/health":
            status, body = 200, b'{"status":"ok"}'
        else:
            status, body = 200, b'{"name":"turnout"}'
        self._answer(connection, answers.whole(status, self._headers(head), body), head=head)

    def routed(self, connection: Connection, head: Head, answer: bytes | Refusal) -> None:
        """Answer a decision-only path."""
        if isinstance(answer, Refusal):
            self._answer(connection, self.refusal(head.path, answer, head))
        else:
            self._answer(connection, answers.whole(200, self._headers(head), answer))

    def _models(self, connection: Connection, head: Head) -> None:
        document = models_document(self, head)
        if type(document) is Refusal:
            self._answer(connection, self.refusal(head.path, document, head))
        else:
            self._answer(connection, answers.whole(200, self._headers(head), msgspec.json.encode(document)))

    def _headers(self, head: Head) -> bytes:
        return b"%bx-request-id: %b\r\n" % (answers.JSON_TYPE, self._request_id(head))

    def _request_id(self, head: Head | None) -> bytes:
        return (client_id(head.headers) if head is not None else b"") or self.next_id(self.now_ms()).encode()

    def _answer(self, connection: Connection, answer: bytes, head: Head | None = None) -> None:
        if head is not None and head.method == b"HEAD":
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        if self.draining or not connection.keep_alive:
            answer = answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
        connection.write(answer)
        connection.finish()


def _no_book() -> PriceBook | None:
    return None


_POLICY_PERMISSION: Final = "policy"
_POLICY_FORBIDDEN: Final = Refusal(
    403,
    "permission_denied",
    "This key may not choose the scheduling policy: its permissions lack 'policy'.",
    "x-turnout-policy",
    "permission_error",
)
_UNREACHABLE: Final = frozenset(
    (ErrorKind.CONNECT_ERROR.value, ErrorKind.TIMEOUT_CONNECT.value, ErrorKind.TIMEOUT_SEND.value)
)


def _not_allowed(method: bytes, allowed: str) -> Refusal:
    return Refusal(
        405,
        "method_not_allowed",
        f"{method.decode()} is not served here; expected {allowed}.",
        close=method in (b"TRACE", b"CONNECT"),
        headers=((b"allow", allowed.encode()),),
    )
