"""The public door: which path means what, who may ask, and the state that all runs share (request-path §1)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec
import xxhash

from turnout.core import options
from turnout.core.errors import ErrorKind, Outcome
from turnout.core.facts import CallFact, RouteKey
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.kit.rng import Rng
from turnout.core.kit.ulid import UlidSource
from turnout.core.prefix.keys import TextChains, root_key, token_keys
from turnout.core.retry_budget import RetryBudget
from turnout.core.scheduling.types import Ask, Decision
from turnout.core.types import Refusal
from turnout.dialects.openai import CHAT, COMPLETIONS, EMBEDDINGS, decode
from turnout.gateway import answers
from turnout.gateway.catalogue import Catalogue
from turnout.gateway.counts import RelayCounts
from turnout.gateway.prepare import Prepared, client_id
from turnout.gateway.principals import ANONYMOUS, Principal, Principals
from turnout.gateway.run import Run
from turnout.gateway.upstream import Reach
from turnout.http.head import Head
from turnout.http.server import Connection

_TICK_S = 0.1
_MODELS = b"/v1/models"
_MODEL = b"/v1/models/"
_GENERATE = frozenset((CHAT, COMPLETIONS, EMBEDDINGS))
_PUBLIC = frozenset((b"/", b"/health", b"/ready"))
_TOKEN_BLOCK = 64
_ROOTS_MAX = 4096
_DRAIN_RETRY_S = 15


class Counts(Protocol):
    """Something that counts values."""

    def observe(self, value: float) -> None:
        """Count one value."""


class Instruments(Protocol):
    """What the gateway counts; the telemetry shell provides it."""

    @property
    def itl(self) -> Counts:
        """Seconds between output events."""

    @property
    def schedule(self) -> Counts:
        """Seconds from a complete request to its decision."""

    @property
    def overhead(self) -> Counts:
        """Seconds of our own up to the response head."""

    def closed(self, fact: CallFact) -> None:
        """Count one closed exchange."""

    def refused(self, code: str) -> None:
        """Count one refusal before the exchange."""

    def prefix(self, result: str, blocks: int, matched: int) -> None:
        """Count one prefix look-up."""

    def picked(self, endpoint: str) -> None:
        """Count one pick."""

    def dropped(self, reason: str) -> None:
        """Count one dropped candidate."""


class Sources(msgspec.Struct, frozen=True):
    """Time and chance, as arguments: monotonic seconds, UTC milliseconds, 80 random bits, a seeded generator."""

    clock: Callable[[], float]
    now_ms: Callable[[], int]
    entropy: Callable[[], int]
    rng: Rng


class Gateway:
    """Serves the public listener (`http.server.Handler`)."""

    def __init__(
        self,
        *,
        server: options.Server,
        relay: options.Relay,
        timeout: options.Timeout,
        retry: options.Retry,
        prefix: options.Prefix,
        fleet: Fleet,
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
        # No attempt can be due earlier, so opening one computes no deadline of its own: the tick does.
        self.first_look_s = min(
            timeout.first_token_s,
            timeout.first_token_failover_s,
            timeout.stall_s,
            timeout.content_stall_s,
            relay.keepalive_s,
            timeout.total_s,
        )
        self.fleet, self.catalogue, self.upstreams = fleet, catalogue, upstreams
        self.meter = meter
        self.router_id = router_id
        self.clock, self.now_ms, self.rng = sources.clock, sources.now_ms, sources.rng
        self.loop = asyncio.get_running_loop()
        self.runs: set[Run] = set()
        self.relayed = RelayCounts()
        self.draining = False
        self.decisions: deque[tuple[str, Decision]] = deque(maxlen=decisions_max)
        self.on_unreachable: Callable[[EndpointState], None] = lambda _: None
        self._server, self._prefix = server, prefix
        self._principals = principals
        self._record = record
        self._ids = UlidSource()
        self._entropy = sources.entropy
        self.budgets: dict[str, RetryBudget] = {}
        self._roots: dict[tuple[str, ...], int] = {}
        self._chains = TextChains(prefix.block_bytes)
        self._routes: dict[tuple[str, str], RouteKey] = {}
        self._ticker: asyncio.TimerHandle | None = None

    # -- the door (http.server.Handler) -------------------------------------------------------------------------------

    def on_head(self, head: Head) -> Refusal | None:
        """Check drain, path and method, key, and headers, in this order."""
        path, method = head.path, head.method
        if path in _PUBLIC:
            return None if method in (b"GET", b"HEAD") else _not_allowed(method, "GET, HEAD")
        if self.draining and (path in _GENERATE or path == _MODELS or path.startswith(_MODEL)):
            return Refusal(
                503, "draining", "The router is shutting down.", None, "overloaded", _DRAIN_RETRY_S, close=True
            )
        if path in _GENERATE:
            if method != b"POST":
                return _not_allowed(method, "POST")
        elif path == _MODELS or path.startswith(_MODEL):
            if method != b"GET":
                return _not_allowed(method, "GET")
        else:
            return Refusal(404, "not_found", "There is nothing at this path.", close=method in (b"TRACE", b"CONNECT"))
        prepared = head.prepared
        if prepared is None:
            prepared = head.prepared = Prepared(head)
        identity = prepared.identity
        if identity is None or prepared.snapshot is not self._principals:
            identity = prepared.identity = self._principals.identify(prepared.carriers)
            # A key that expires is looked up every time; the others keep their meaning as long as the snapshot.
            prepared.snapshot = None if self._principals.expiring else self._principals
        if type(identity) is Refusal:
            return identity
        refusal: Refusal | None = prepared.refusal
        return refusal

    def on_request(self, connection: Connection, head: Head, body: bytes) -> None:
        """Serve a complete request."""
        path = head.path
        if path in _GENERATE:
            request = decode(path, body, self._server.json_depth_max, self.catalogue.default)
            if type(request) is Refusal:
                self._answer(connection, self.refusal(path, request, head))
                return
            run = Run(self, connection, head, request, head.prepared.identity)  # type: ignore[arg-type]
            try:
                run.begin()
            except Exception as error:  # noqa: BLE001 - as the next one
                self._broken(run, error)
        elif path in _PUBLIC:
            self._public(connection, head)
        else:
            self._models(connection, head)

    def refusal(self, path: bytes, refusal: Refusal, head: Head | None) -> bytes:
        """Word a refusal and count it."""
        self.meter.refused(refusal.code)
        return answers.refusal(path, refusal, self._request_id(head))

    # -- what runs use ------------------------------------------------------------------------------------------------

    def next_id(self, now_ms: int) -> str:
        """Return a new id of exchange and decision."""
        ids = self._ids
        return ids.next(now_ms, self._entropy() if now_ms > ids.ms else 0)

    def budget(self, model: str) -> RetryBudget:
        """Return the retry budget of a resolved model."""
        budget = self.budgets.get(model)
        if budget is None:
            budget = self.budgets[model] = RetryBudget(self.retry_options)
        return budget

    def ask(self, run: Run, pool: Pool) -> Ask:
        """Return what scheduling needs to know about a run."""
        request, prompt = run.request, run.request.prompt
        session = run.prepared.session or request.session or run.prepared.session_fallback
        session_key = xxhash.xxh3_64_intdigest(f"{run.principal.tenant}\0{session}".encode()) if session else 0
        keys: list[int] = []
        tokens = len(prompt.tokens)
        prefix = self._prefix
        if prefix.max_blocks != 0:
            if prompt.rendered:
                if len(prompt.rendered) >= prefix.block_bytes:
                    root = self._root(run, "text")
                    keys = self._chains.keys(prompt.rendered, root, prefix.max_blocks_per_request)
            elif tokens >= _TOKEN_BLOCK:
                keys = token_keys(prompt.tokens, self._root(run, "tok"), _TOKEN_BLOCK, prefix.max_blocks_per_request)
        if not tokens:
            tokens = -(-len(prompt.rendered) // 4) or run.floor
        return Ask(
            model=pool.model, keys=keys, tokens=tokens, estimate_floor=run.floor, session=session_key, relax=True
        )

    def decided(self, run: Run) -> None:
        """Count and keep a first decision, so that it can be explained afterwards."""
        decision = run.exchange.decision if run.exchange is not None else None
        if decision is None:
            return
        meter = self.meter
        meter.schedule.observe(run.decide_s)
        meter.prefix(decision.prefix_result, decision.blocks, decision.matched_blocks)
        if decision.picked is not None:
            meter.picked(decision.picked.name)
        for _, reason in decision.dropped:
            meter.dropped(reason)
        self.decisions.append((run.call_id, decision))

    def record(self, fact: CallFact) -> None:
        """Pass one closed exchange to metrics and ledger: the one recording function of every path."""
        self.meter.closed(fact)
        self._record(fact)
        if fact.cls == "ok" and len(fact.attempts) == 1:
            return
        for attempt in fact.attempts:
            if attempt.error_kind in _UNREACHABLE and attempt.route is not None:
                endpoint = self.fleet.endpoints.get(attempt.route.replica)
                if endpoint is not None:
                    self.on_unreachable(endpoint)

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

    def interrupt_all(self) -> None:
        """End every open exchange with `shutdown` (X3)."""
        for run in list(self.runs):
            run.interrupt(Outcome.SHUTDOWN, ErrorKind.CANCELLED)

    def stop(self) -> None:
        """Stop ticking and close every connection to engines."""
        if self._ticker is not None:
            self._ticker.cancel()
        for upstream in self.upstreams.values():
            upstream.pool.close()

    def _tick(self) -> None:
        self._ticker = self.loop.call_later(_TICK_S, self._tick)
        now = self.clock()
        for run in [run for run in self.runs if run.next_at_s <= now]:
            if run.outcome is None:
                try:
                    run.tick(now)
                except Exception as error:  # noqa: BLE001 - a bug ends its own exchange only: the next run is ticked
                    self._broken(run, error)
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

    def _root(self, run: Run, space: str) -> int:
        request = run.request
        tenant = run.principal.tenant if self._prefix.tenant_salt else ""
        entry = self.catalogue.entry(run.model)
        key = (space, entry.id, entry.weight_version, request.cache_salt, tenant, request.render_salt)
        root = self._roots.get(key)
        if root is None:
            if len(self._roots) >= _ROOTS_MAX:
                self._roots.clear()
            root = self._roots[key] = root_key(
                entry.id,
                space=space,
                block=self._prefix.block_bytes if space == "text" else _TOKEN_BLOCK,
                weight_version=entry.weight_version,
                cache_salt=request.cache_salt,
                tenant=tenant,
                render_salt=request.render_salt if space == "text" else "",
            )
        return root

    # -- small answers ------------------------------------------------------------------------------------------------

    def _public(self, connection: Connection, head: Head) -> None:
        ready = not self.draining
        if head.path == b"/ready" and not ready:
            status, body = 503, b'{"status":"draining"}'
        elif head.path == b"/ready":
            status, body = 200, b'{"status":"ready"}'
        elif head.path == b"/health":
            status, body = 200, b'{"status":"ok"}'
        else:
            status, body = 200, b'{"name":"turnout"}'
        self._answer(connection, answers.whole(status, self._headers(head), body), head=head)

    def _models(self, connection: Connection, head: Head) -> None:
        identity = head.prepared.identity
        principal = identity if isinstance(identity, Principal) else ANONYMOUS
        allowed = [model for model in self.catalogue.ids() if principal.may_use(model)]
        if head.path == _MODELS:
            document: object = {"object": "list", "data": [self._model(model) for model in allowed]}
        else:
            name = self.catalogue.resolve(head.path[len(_MODEL) :].decode("latin-1"))
            if name not in allowed:
                shown = head.path[len(_MODEL) :][:64].decode("latin-1")
                refused = Refusal(404, "model_not_found", f"The model {shown!r} does not exist.", "model")
                self._answer(connection, self.refusal(head.path, refused, head))
                return
            document = self._model(name)
        self._answer(connection, answers.whole(200, self._headers(head), msgspec.json.encode(document)))

    def _model(self, model: str) -> dict[str, object]:
        pool = self.fleet.pool(model)
        contexts = [member.context_max for member in pool.members if member.context_max] if pool is not None else []
        entry: dict[str, object] = {"id": model, "object": "model", "created": 0, "owned_by": "turnout"}
        if contexts:
            entry["max_model_len"] = max(contexts)
        return entry

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


_UNREACHABLE = frozenset((ErrorKind.CONNECT_ERROR.value, ErrorKind.TIMEOUT_CONNECT.value))


def _not_allowed(method: bytes, allowed: str) -> Refusal:
    return Refusal(
        405,
        "method_not_allowed",
        f"{method.decode()} is not served here; expected {allowed}.",
        close=method in (b"TRACE", b"CONNECT"),
        headers=((b"allow", allowed.encode()),),
    )
