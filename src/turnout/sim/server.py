"""The engine on a socket: each path to its answer, and the faults that strike before an answer or end the process."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
import xxhash

import turnout
from turnout.sim import anthropic_wire, native, wire
from turnout.sim.answers import Shape, StreamAnswer, WholeAnswer
from turnout.sim.anthropic import MessagesReader
from turnout.sim.faults import HEADER, MID_ANSWER, Fault, FaultPlan, parse_header
from turnout.sim.faults_before import Draw, strike_before_answer
from turnout.sim.handover import MEMBERS, Handovers, server_info
from turnout.sim.handover_shapes import KV_PATH
from turnout.sim.http import Connection, HttpRequest
from turnout.sim.ranks import HEADER as HEADER_RANK
from turnout.sim.ranks import HEADER_LOAD, Ranks
from turnout.sim.requests import Generate, RefusalError
from turnout.sim.text import readable

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.sim.options import EngineOptions

GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", anthropic_wire.PATH, native.PATH})
REMEMBERED_REQUESTS = 100
DEATH_DELAY_S = 0.01
"""Time for the answer to the control request that asked for the death."""


class SimEngineServer:
    """One simulated engine on a socket. `die` ends the process for the fault `exit`; None closes every socket."""

    def __init__(
        self,
        options: EngineOptions,
        *,
        die: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options
        self._clock = clock
        self.faults = FaultPlan(options.seed, options.faults, engine=options.name, clock=clock)
        self._die = die or self._vanish
        self._reader = MessagesReader(options.model, options.context_tokens)
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._port = options.port
        self._tasks: set[asyncio.Task[None]] = set()
        self._recent: deque[dict[str, str]] = deque(maxlen=REMEMBERED_REQUESTS)
        self._stale: bytes | None = None
        self._alive = False
        silent = msgspec.structs.replace(options, kv_events="", kv_load="")
        self._ranks = Ranks(silent, self.faults, clock)
        self._handovers = self._new_handovers()
        self._routes: dict[tuple[str, str], Callable[[Connection, HttpRequest], None]] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completion,
            ("POST", "/v1/embeddings"): self._embedding,
            ("POST", anthropic_wire.PATH): self._messages,
            ("POST", f"{anthropic_wire.PATH}/count_tokens"): self._count_tokens,
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics_page,
            ("GET", "/version"): self._version,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("POST", "/abort_request"): self._abort,
            ("GET", "/query"): self._query,
            ("POST", KV_PATH): self._fetch,
            ("GET", "/sim/state"): self._state,
            ("GET", "/sim/faults"): self._faults_listed,
            ("POST", "/sim/faults"): self._faults_added,
            ("DELETE", "/sim/faults"): self._faults_cleared,
        }
        if options.dialect == "sglang":
            self._routes |= {
                ("GET", "/server_info"): self._server_info,
                ("GET", "/v1/loads"): self._loads,
                ("POST", native.PATH): self._native,
            }

    async def start(self) -> tuple[str, int]:
        """Listen, and return host and port; after `stop`, a new incarnation. Raises OSError if the port is taken."""
        self._ranks = Ranks(self.options, self.faults, self._clock)
        self._handovers = self._new_handovers()
        self._alive = True
        await self._listen()
        if (refuse := self.faults.draw("refuse")) is not None:
            self._refuse(refuse)
        return self.options.host, self._port

    async def stop(self) -> None:
        """Close the listener and every connection; safe to call twice."""
        self._vanish()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def kv_addresses(self) -> tuple[str, str]:
        """Where KV events are published and replayed; empty when they are not."""
        publisher = self._ranks.first.publisher
        return ("", "") if publisher is None else (publisher.address, publisher.replay_address)

    def inject(self, fault: Fault) -> None:
        """Put a fault in force, as `POST /sim/faults` does. Raises ValueError beyond the cap."""
        self.faults.add(fault)
        if fault.after_requests:
            return
        loop = asyncio.get_running_loop()
        if fault.kind == "refuse" and (drawn := self.faults.draw("refuse")):
            loop.call_later(DEATH_DELAY_S, self._refuse, drawn)
        elif fault.kind == "exit" and self.faults.draw("exit"):
            loop.call_later(DEATH_DELAY_S, self._die)
        elif fault.kind == "restart_same_port" and (drawn := self.faults.draw("restart_same_port")):
            loop.call_later(DEATH_DELAY_S, self._restart, drawn)

    def clear_faults(self) -> None:
        """Lift every fault; a closed listener opens again."""
        self.faults.clear()
        self._stale = None
        if self._alive and self._listener is None:
            self._spawn_listen(0)

    def state(self) -> dict[str, Any]:
        """What tests ask: load, blocks, totals and the last requests."""
        models = self._ranks.models
        aborts = [pump.last_abort_at for pump in self._ranks.pumps if pump.last_abort_at is not None]
        return {
            "running": sum(model.running for model in models),
            "waiting": sum(model.waiting for model in models),
            "requests_total": sum(model.counters.requests for model in models),
            "requests_by_rank": [model.counters.requests for model in models],
            "aborted_total": sum(model.counters.aborted for model in models),
            "last_abort_at": max(aborts, default=None),
            "used_blocks": sum(model.store.used for model in models),
            "cached_blocks": sum(model.store.cached for model in models),
            "kv_events": self.kv_addresses[0],
            "kv_replay": self.kv_addresses[1],
            "connections": len(self._connections),
            "pinned": sum(model.pinned for model in models),
            "offers": self._handovers.open,
            "handovers": dict(self._handovers.counts),
            "requests": list(self._recent),
        }

    # Life and death of the process that this server plays.

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Connection(self._handle, self._connections),
            self.options.host,
            self._port,
            reuse_address=True,
            backlog=4096,
        )
        self._port = self._listener.sockets[0].getsockname()[1]

    def _new_handovers(self) -> Handovers:
        return Handovers(self.options, self._ranks.first, self.faults, lambda: self._port)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _spawn_listen(self, delay_s: float) -> None:
        async def listen_later() -> None:
            await asyncio.sleep(delay_s)
            if self._alive and self._listener is None:
                await self._listen()

        task = asyncio.get_running_loop().create_task(listen_later())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _refuse(self, fault: Fault) -> None:
        """Close the listener and the idle connections; answers in progress and the control connection live on."""
        self._close_listener()
        for connection in tuple(self._connections):
            if not connection.busy and not connection.control:
                connection.cut()
        if fault.seconds:
            self._spawn_listen(fault.seconds)

    def _vanish(self) -> None:
        self._alive = False
        self._close_listener()
        self._ranks.stop()
        self._handovers.stop()
        for connection in tuple(self._connections):
            connection.gone = None
            connection.kill()

    def _restart(self, fault: Fault) -> None:
        if not self._alive:
            return
        self._vanish()
        self._ranks = Ranks(self.options, self.faults, self._clock)
        self._handovers = self._new_handovers()
        self._stale = None
        self._alive = True
        self._spawn_listen(fault.seconds)

    # Requests.

    def _handle(self, connection: Connection, request: HttpRequest) -> None:
        if request.path.startswith("/sim/"):
            connection.control = True
        else:
            try:
                if self._struck_before_answer(connection, request):
                    return
            except ValueError as error:
                connection.reply(400, wire.error_body(400, str(error), "BadRequestError", HEADER))
                return
        route = self._routes.get((request.method, request.path))
        if route is None:
            known = any(path == request.path for _, path in self._routes)
            status, text = (405, "Method Not Allowed") if known else (404, "Not Found")
            connection.reply(status, wire.to_json({"detail": text}))
            return
        try:
            route(connection, request)
        except RefusalError as refusal:
            connection.reply(refusal.status, _worded(request)(wire.refusal_body(refusal)))

    def _struck_before_answer(self, connection: Connection, request: HttpRequest) -> bool:
        """Whether a fault has dealt with this request already: nothing more is to be answered."""
        generating = request.path in GENERATING and (request.method, request.path) in self._routes
        draw = self._draws(request, by_path_only=not generating)
        if generating:
            self._remember(request)
            if draw("exit") is not None:
                self._die()
                return True
            if (restart := draw("restart_same_port")) is not None:
                self._restart(restart)
                return True
            if (refuse := draw("refuse")) is not None:
                self._refuse(refuse)
            if draw("health_lies") is not None:
                return True
        hangs = self._draws(request)("accept_hang") is not None
        return hangs or strike_before_answer(connection, draw, _worded(request))

    def _draws(self, request: HttpRequest, *, by_path_only: bool = False) -> Draw:
        asked = request.headers.get(HEADER)
        own = parse_header(asked) if asked else ()
        return functools.partial(
            self.faults.draw, path=request.path, body=request.body, by_path_only=by_path_only, own=own
        )

    def _remember(self, request: HttpRequest) -> None:
        digest = hashlib.sha256(request.body).hexdigest()
        self._recent.append(
            {"path": request.path, "sha256": digest, "x-request-id": request.headers.get("x-request-id", "")},
        )

    def _identifier(self, request: HttpRequest, prefix: str) -> str:
        given = request.headers.get("x-request-id")
        number = sum(model.counters.requests for model in self._ranks.models)
        return (
            f"{prefix}-{given or xxhash.xxh3_64_hexdigest(f'{self.options.name}:{number}'.encode(), self.options.seed)}"
        )

    def _abort(self, connection: Connection, request: HttpRequest) -> None:
        self._handovers.abort(connection, request)

    def _fetch(self, connection: Connection, request: HttpRequest) -> None:
        self._handovers.fetch(connection, request)

    def _chat(self, connection: Connection, request: HttpRequest) -> None:
        self._generate(connection, request, self._reader.chat(request.body))

    def _completion(self, connection: Connection, request: HttpRequest) -> None:
        self._generate(connection, request, self._reader.completion(request.body))

    def _generate(self, connection: Connection, request: HttpRequest, asked: Generate) -> None:
        shape = wire.Shape(
            chat=asked.chat,
            identifier=self._identifier(request, "chatcmpl" if asked.chat else "cmpl"),
            created=int(time.time()),
            model=self.options.model,
            with_logprobs=asked.logprobs,
        )
        if not asked.stream and self.options.dialect == "vllm":
            connection.beside = self._ranks.beside(request.headers.get(HEADER_LOAD, ""), self.faults)
        if any(member in request.body for member in MEMBERS) and self._handovers.take(
            connection, request, asked, shape, functools.partial(self._mid_answer, request)
        ):
            return
        self._answer(connection, request, asked, shape)

    def _messages(self, connection: Connection, request: HttpRequest) -> None:
        asked = self._reader.messages(request.body)
        shape = anthropic_wire.AnthropicShape(identifier=self._identifier(request, "msg"), model=self.options.model)
        self._answer(connection, request, asked, shape)

    def _answer(self, connection: Connection, request: HttpRequest, asked: Generate, shape: Shape) -> None:
        fault = self._mid_answer(request)
        make = StreamAnswer if asked.stream else WholeAnswer
        answer = make(connection, asked, shape, fault, cached_tokens=self.options.cached_tokens)
        pump = self._ranks.pick(asked.rank, request.headers.get(HEADER_RANK))
        connection.gone = functools.partial(pump.abort, pump.run(asked.work, answer))

    def _native(self, connection: Connection, request: HttpRequest) -> None:
        parts, fault = (self.options, self._ranks, self._handovers), functools.partial(self._mid_answer, request)
        native.serve(connection, request, *parts, fault=fault, identifier=self._identifier(request, "gen"))

    def _mid_answer(self, request: HttpRequest) -> Fault | None:
        """Draw what befalls an answer while it is written."""
        draw = self._draws(request)
        draws = (draw(kind) for kind in MID_ANSWER)
        return next((drawn for drawn in draws if drawn is not None), None)

    def _embedding(self, connection: Connection, request: HttpRequest) -> None:
        inputs, dimensions, as_base64 = self._reader.embedding(request.body)
        identifier = self._identifier(request, "embd")
        body = wire.embeddings_body(self.options.model, identifier, inputs, dimensions, as_base64=as_base64)
        connection.reply(200, body)

    def _count_tokens(self, connection: Connection, request: HttpRequest) -> None:
        connection.reply(200, anthropic_wire.count_body(self._reader.count(request.body)))

    def _models(self, connection: Connection, _: HttpRequest) -> None:
        body = wire.models_body(self.options.model, int(self._ranks.first.started_at), self.options.context_tokens)
        connection.reply(200, body)

    def _health(self, connection: Connection, _: HttpRequest) -> None:
        connection.reply(200, b"")

    def _version(self, connection: Connection, _: HttpRequest) -> None:
        connection.reply(200, wire.to_json({"version": f"turnout-{turnout.__version__}"}))

    def _metrics_page(self, connection: Connection, _: HttpRequest) -> None:
        if self.faults.draw("metrics_stale") is not None:
            self._stale = text = self._stale or self._ranks.metrics()
        else:
            self._stale = None
            missing = self.faults.draw("metrics_missing") is not None
            text = self._ranks.metrics(zero=self.faults.draw("metrics_zero") is not None, missing=missing)
        if self.options.role != "both":
            text += self._handovers.metrics()
        connection.reply(200, text, content_type="text/plain; version=0.0.4; charset=utf-8")

    def _server_info(self, connection: Connection, _: HttpRequest) -> None:
        connection.reply(200, wire.to_json(server_info(self.options, self._port, self.kv_addresses[0])))

    def _loads(self, connection: Connection, _: HttpRequest) -> None:
        connection.reply(200, wire.to_json(self._ranks.loads()))

    def _query(self, connection: Connection, _: HttpRequest) -> None:
        connection.reply(200, wire.to_json({"0": {"engine_id": self.options.name}}))

    def _tokenize(self, connection: Connection, request: HttpRequest) -> None:
        tokens = self._reader.tokenize(request.body)
        connection.reply(200, wire.tokens_body(tokens, self.options.context_tokens))

    def _detokenize(self, connection: Connection, request: HttpRequest) -> None:
        connection.reply(200, wire.to_json({"prompt": readable(self._reader.detokenize(request.body))}))

    # The control door, for tests.

    def _state(self, connection: Connection, _: HttpRequest) -> None:
        connection.reply(200, wire.to_json(self.state()))

    def _faults_listed(self, connection: Connection, _: HttpRequest) -> None:
        connection.reply(200, wire.to_json({"faults": self.faults.listing()}))

    def _faults_added(self, connection: Connection, request: HttpRequest) -> None:
        try:
            fault = msgspec.json.decode(request.body, type=Fault)
            self.inject(fault)
        except ValueError as error:  # msgspec's errors are ValueErrors
            raise RefusalError(400, str(error)) from error
        self._faults_listed(connection, request)

    def _faults_cleared(self, connection: Connection, request: HttpRequest) -> None:
        self.clear_faults()
        self._faults_listed(connection, request)


def _worded(request: HttpRequest) -> Callable[[bytes], bytes]:
    """How an error body is put into the dialect of a request."""
    if request.path == native.PATH:
        return native.translated
    return anthropic_wire.translated if request.path.startswith(anthropic_wire.PATH) else bytes
