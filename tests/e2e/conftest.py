"""A real router on loopback, engines that follow a script, and raw client sockets: every byte is a test's own.

Routers and engines share one uvloop on a thread; tests run beside it and block on sockets and conditions, never on
sleeps. An engine records the bytes it received; probes (GET) are answered and kept apart, so that "the engine saw
nothing" means what it says.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import functools
import gc
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar, cast

import msgspec
import pytest
import uvloop

from turnout.app import App
from turnout.config.schema import Config
from turnout.core.admission.spending import Spending
from turnout.core.facts import CallFact, OpenedCall, StatsSnapshot
from turnout.core.pricing import PriceBook

T = TypeVar("T")
KEY = "tt-test-key-of-tenant-one"
MODEL = "model-a"
PATIENCE_S = 30.0  # only what never comes waits so long


class Loop:
    """The event loop that routers and engines run on."""

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(2 * PATIENCE_S)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def connect(self, port: int) -> Client:
        return Client(port)

    def eventually(self, holds: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if self.call(holds):
                return True
        return False

    def call(self, function: Callable[[], T]) -> T:
        async def work() -> T:
            return function()

        return self.run(work())

    def settle(self) -> None:
        """Let the loop end its round; nothing to do in one of its own callbacks."""
        if threading.current_thread() is not self._thread:
            self.call(bool)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()


def _until(loop: Loop, told: threading.Condition, holds: Callable[[], bool]) -> bool:
    """Wait for what happens on the loop: beside it, or, where it runs in this thread, by running it."""
    if not isinstance(loop, Loop):
        return bool(loop.eventually(holds))
    with told:
        return told.wait_for(holds, PATIENCE_S)


class Gate:
    """A step of a script that waits until the test opens it."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.reached = threading.Event()

    def open(self) -> None:
        self._open.set()
        for loop, waiter in self._waiters:
            loop.call_soon_threadsafe(_resolve, waiter)

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append((loop, waiter))
        self.reached.set()
        if not self._open.is_set():
            await waiter


class Cut:
    """A step that closes the connection: `reset` without a word, else in order."""

    def __init__(self, *, reset: bool = False) -> None:
        self.reset = reset


Step = bytes | Gate | Cut
Script = list[Step]
Player = Callable[["EngineRequest"], Script]


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class EngineRequest:
    """One request as an engine received it."""

    def __init__(self, raw_head: bytes, body: bytes) -> None:
        self.raw_head = raw_head
        lines = raw_head.split(b"\r\n")
        self.line = lines[0]
        self.headers = [
            (name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines[1:] if line)
        ]
        self.body = body
        self.closed = threading.Event()

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _EngineConnection(asyncio.Protocol):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None
        self._current: EngineRequest | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._engine.open.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        request = EngineRequest(head, b"")
        length = int(request.header(b"content-length") or 0)
        if len(rest) < length:
            return
        request.body, self._buffer = rest[:length], rest[length:]
        self._current = request
        script = self._engine.take(request)
        self._task = asyncio.get_running_loop().create_task(self._follow(script))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._engine.open.discard(self)
        if self._task is not None:
            self._task.cancel()
        if self._current is not None:
            self._current.closed.set()

    async def _follow(self, script: Script) -> None:
        for step in script:
            if isinstance(step, bytes):
                self.transport.write(step)
            elif isinstance(step, Gate):
                await step.wait()
            elif step.reset:
                self.transport.abort()
            else:
                self.transport.close()


class Engine:
    """An engine on loopback that answers by script: one script per request, the last one for all that follow."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._arrived = threading.Condition()
        self.requests: list[EngineRequest] = []
        self.probes: list[EngineRequest] = []
        self.scripts: list[Script | Player] = [[answer()]]
        self.models: bytes = b'{"object":"list","data":[]}'
        self.pages: dict[bytes, bytes] = {}
        """What it answers to a GET of these paths; the model list to any other."""
        self.answers_probes = True
        self.open: set[_EngineConnection] = set()
        self._server: asyncio.Server = loop.run(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(lambda: _EngineConnection(self), "127.0.0.1", 0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def says(self, *scripts: Script | Player | bytes) -> None:
        """Follow these scripts; a function writes the script of a request when it arrives."""
        self.scripts = [[script] if isinstance(script, bytes) else script for script in scripts]

    def take(self, request: EngineRequest) -> Script:
        if request.line.startswith(b"GET "):
            self.probes.append(request)
            if not self.answers_probes:
                return []
            return [answer(self.pages.get(request.line.split()[1], self.models))]
        with self._arrived:
            self.requests.append(request)
            self._arrived.notify_all()
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        return script if isinstance(script, list) else script(request)

    def request(self, index: int = 0) -> EngineRequest:
        """Wait for the request with this index."""
        arrived = _until(self._loop, self._arrived, lambda: len(self.requests) > index)
        assert arrived, f"the engine saw {len(self.requests)} requests, expected more than {index}"
        return self.requests[index]

    def stop(self) -> None:
        def close() -> None:
            self._server.close()
            for connection in list(self.open):
                connection.transport.abort()

        self._loop.call(close)


class Response:
    """One response as a raw client saw it. `whole`: its framing ended as announced."""

    def __init__(self, status: int, head: bytes, body: bytes, *, whole: bool) -> None:
        self.status, self.head, self.body, self.whole = status, head, body, whole
        self.headers = [
            (name.lower(), value.strip())
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:] if line)
        ]

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> Any:
        return self.json["error"]["code"]

    @property
    def param(self) -> Any:
        return self.json["error"]["param"]


class Client:
    """A raw client socket."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.sendall(piece)

    def read(self, marker: bytes) -> bytes:
        """Read up to and including the marker."""
        while marker not in self.buffer:
            self._more()
        end = self.buffer.index(marker) + len(marker)
        taken, self.buffer = self.buffer[:end], self.buffer[end:]
        return taken

    def response(self, method: bytes = b"POST") -> Response:
        """Read one final response."""
        head = self.read(b"\r\n\r\n")[:-4]
        status = int(head.split(b" ", 2)[1])
        seen = Response(status, head, b"", whole=True)
        length = seen.header(b"content-length")
        if method == b"HEAD" or status in (100, 204, 304):
            return seen
        if seen.header(b"transfer-encoding") == b"chunked":
            seen.body, seen.whole = self._chunked()
        elif length is not None:
            while len(self.buffer) < int(length):
                self._more()
            seen.body, self.buffer = self.buffer[: int(length)], self.buffer[int(length) :]
        else:
            seen.body = self.rest()
        return seen

    def rest(self) -> bytes:
        """Read until the peer closes; a reset is an error."""
        pieces, self.buffer = [self.buffer], b""
        while data := self.socket.recv(65_536):
            pieces.append(data)
        return b"".join(pieces)

    def is_closed(self) -> bool:
        """Wait until the peer closes in order, without another byte."""
        return self.rest() == b""

    def close(self, *, reset: bool = False) -> None:
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def _chunked(self) -> tuple[bytes, bool]:
        body: list[bytes] = []
        try:
            while size := int(self.read(b"\r\n"), 16):
                while len(self.buffer) < size + 2:
                    self._more()
                body.append(self.buffer[:size])
                assert self.buffer[size : size + 2] == b"\r\n"
                self.buffer = self.buffer[size + 2 :]
            assert self.read(b"\r\n") == b"\r\n"
        except EOFError:
            return b"".join(body) + self.buffer, False
        return b"".join(body), True

    def _more(self) -> None:
        data = self.socket.recv(65_536)
        if not data:
            raise EOFError(f"closed after {self.buffer!r}")
        self.buffer += data


class Records:
    """Takes the ledger's place and keeps what it was told."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._facts: list[CallFact] = []
        self.opened: list[OpenedCall] = []
        self.book = PriceBook.of(None, ())
        self.statistics = StatsSnapshot()
        self.filled = 0.0
        self._told = threading.Condition()

    @property
    def facts(self) -> list[CallFact]:
        """What has ended: the router records in the round after the last bytes of an answer."""
        self._loop.settle()
        return self._facts

    def start(self) -> None: ...

    def prices(self) -> PriceBook:
        return self.book

    def snapshot(self) -> StatsSnapshot:
        return self.statistics

    def session_sums(self, tenant: str, session: str) -> tuple[tuple[int, ...], frozenset[str]]:  # noqa: ARG002
        """No session has rows."""
        return (0,) * 7, frozenset()

    def fill(self) -> float:
        """Share of the last resort in use."""
        return self.filled

    @functools.cached_property
    def spending(self) -> Spending:
        """Nothing was spent before."""
        made = Spending()
        made.publish([], [])
        return made

    def explain(self, recent: Any, render: Any) -> None:
        """Nothing is stored, so nothing is explained."""

    def hot_routes(self) -> list[Any]:
        """No session was anywhere before."""
        return []

    def pages(self) -> Any:
        """Nothing can be read here: the ledger's pages are tested where there is a ledger."""

    def close(self, _: float) -> int:
        return 0

    def stats(self) -> dict[str, int]:
        return collections.defaultdict(int)

    def accepted(self, call: OpenedCall) -> None:
        self.opened.append(call)

    def record(self, fact: CallFact) -> None:
        with self._told:
            self._facts.append(fact)
            self._told.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait so long for anything to end."""
        with self._told:
            return self._told.wait(seconds)

    def fact(self, index: int = 0) -> CallFact:
        told = _until(self._loop, self._told, lambda: len(self._facts) > index)
        assert told, f"{len(self._facts)} exchanges ended, expected more than {index}"
        return self._facts[index]


class Router:
    """One running router."""

    def __init__(self, loop: Loop, config: Config) -> None:
        self._loop = loop
        self.config = config
        self.app = App(config, clock=loop.clock)
        self.records = Records(loop)
        self.app.ledger = cast("Any", self.records)
        loop.run(self._start())
        self.port, self.admin_port = self.app.port, self.app.admin_port
        self.key, self.model = KEY, MODEL
        self._clients: list[Client] = []
        self._stopped = False

    async def _start(self) -> None:
        await self.app.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, port: int | None = None) -> Client:
        client = self._loop.connect(self.port if port is None else port)
        self._clients.append(client)
        return client

    def head(
        self, *lines: bytes, path: bytes = b"/v1/chat/completions", method: bytes = b"POST", key: str = KEY
    ) -> bytes:
        """Return a head with key and Host, ending in the empty line."""
        own = [b"%b %b HTTP/1.1" % (method, path), b"Host: localhost", b"Authorization: Bearer %b" % key.encode()]
        return b"\r\n".join([*own, *lines, b"", b""])

    def request(
        self,
        body: object = None,
        *lines: bytes,
        path: bytes = b"/v1/chat/completions",
        method: bytes = b"POST",
        key: str = KEY,
    ) -> bytes:
        """Return a whole request; bytes travel as they are, other bodies as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(chat() if body is None else body).encode()
        if method in (b"GET", b"HEAD") and body is None:
            return self.head(*lines, path=path, method=method, key=key)
        return self.head(b"Content-Length: %d" % len(content), *lines, path=path, method=method, key=key) + content

    def ask(self, *args: Any, port: int | None = None, **kwargs: Any) -> Response:
        """Send one request on a connection of its own and return the answer."""
        client = self.client(port)
        client.send(self.request(*args, **kwargs))
        answered = client.response(kwargs.get("method", b"POST"))
        client.close()
        return answered

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the router's loop."""
        return self._loop.call(function)

    def eventually(self, holds: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
        """Tell whether a fact about the router becomes true; looks at it from the loop, without a pause of its own."""
        return self._loop.eventually(holds, within_s)

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        for client in self._clients:
            client.close()
        self._loop.run(self.app.stop())


def chat(**members: object) -> dict[str, object]:
    """A small chat request; None removes a member."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], **members}
    return {name: value for name, value in body.items() if value is not ...}


ANSWER = b'{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}'


def answer(body: bytes = ANSWER, status: int = 200, *lines: bytes, kind: bytes = b"application/json") -> bytes:
    """A whole JSON answer of an engine."""
    head = [b"HTTP/1.1 %d OK" % status, b"Content-Type: " + kind, b"Content-Length: %d" % len(body), *lines, b"", b""]
    return b"\r\n".join(head) + body


def event(content: str | None = None, finish: str | None = None, index: int = 0, **members: object) -> bytes:
    """One event of a chat stream."""
    delta = {"content": content} if content is not None else {}
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    document = {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **members}
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


USAGE_EVENT = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def stream(*events: bytes) -> Script:
    """The script of a whole stream, one chunk per event."""
    return [STREAM_HEAD, *map(chunk, events), b"0\r\n\r\n"]


class Wire:
    """The vocabulary of engine scripts, for tests that take it as a fixture."""

    Gate, Cut = Gate, Cut
    answer = staticmethod(answer)
    event = staticmethod(event)
    chunk = staticmethod(chunk)
    stream = staticmethod(stream)
    chat = staticmethod(chat)
    Client = Client
    ANSWER, USAGE, DONE, STREAM_HEAD = ANSWER, USAGE_EVENT, DONE, STREAM_HEAD
    KEY, MODEL = KEY, MODEL


@pytest.fixture(scope="session")
def wire() -> type[Wire]:
    return Wire


@pytest.fixture(scope="session")
def loop(real_loop: Loop) -> Loop:
    return real_loop


@pytest.fixture(scope="session")
def real_loop() -> Iterator[Loop]:
    loop = Loop()
    thresholds = gc.get_threshold()
    yield loop
    loop.close()
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def key_table(name: str, key: str, tenant: str, **members: object) -> dict[str, object]:
    return {"name": name, "tenant": tenant, "digest": "sha256:" + hashlib.sha256(key.encode()).hexdigest(), **members}


def _config(engines: list[Engine], overrides: dict[str, Any]) -> Config:
    tables: dict[str, Any] = {
        "server": {"listen": "127.0.0.1:0", "admin_listen": ""},
        "ledger": {"url": ""},  # `Records` stands in for it
        "log": {"level": "error"},
        "drain": {"grace_s": 0.01},
        "load": {"scrape_interval_ms": 0},  # connections to engines are counted
        "key": [key_table("one", KEY, "tenant-one")],
        "endpoint": [{"name": f"e{i}", "url": e.url, "models": [MODEL]} for i, e in enumerate(engines, 1)],
    }
    for name, value in overrides.items():
        tables[name] = {**tables.get(name, {}), **value} if isinstance(value, dict) else value
    return msgspec.convert(tables, Config)


def _routers(loop: Loop) -> Iterator[Callable[..., Router]]:
    running: list[Router] = []

    def start(*engines: Engine, **overrides: Any) -> Router:
        """Start a router over these engines; overrides are tables of the configuration."""
        router = Router(loop, _config(list(engines), overrides))
        running.append(router)
        return router

    yield start
    for router in running:
        router.stop()


def _engines(loop: Loop) -> Iterator[Callable[..., Engine]]:
    running: list[Engine] = []

    def start(*scripts: Script | Player | bytes) -> Engine:
        engine = Engine(loop)
        if scripts:
            engine.says(*scripts)
        running.append(engine)
        return engine

    yield start
    for engine in running:
        engine.stop()


@pytest.fixture
def script_engine(loop: Loop) -> Iterator[Callable[..., Engine]]:
    """Start an engine that follows these scripts."""
    yield from _engines(loop)


@pytest.fixture
def router(loop: Loop) -> Iterator[Callable[..., Router]]:
    """Start a router: `router(engine, …, server={…}, timeout={…}, endpoint=[…], key=[…])`."""
    yield from _routers(loop)


@pytest.fixture(scope="module")
def module_engine(loop: Loop) -> Iterator[Callable[..., Engine]]:
    """As `script_engine`, for the whole module."""
    yield from _engines(loop)


@pytest.fixture(scope="module")
def module_router(loop: Loop) -> Iterator[Callable[..., Router]]:
    """As `router`, for the whole module."""
    yield from _routers(loop)
