"""An engine that follows a script, and records the bytes it received.

Probes (GET) are answered and kept apart, so that "the engine saw nothing" means what it says.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any, cast

from tests.support.loop import Loop, until
from tests.support.wire import Gate, Player, Script, answer


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
        self.missing: set[bytes] = set()
        """Pages that it does not have."""
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
            page = request.line.split()[1]
            if page in self.missing:
                return [answer(b'{"detail":"Not Found"}', 404)]
            return [answer(self.pages.get(page, self.models))]
        with self._arrived:
            self.requests.append(request)
            self._arrived.notify_all()
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        return script if isinstance(script, list) else script(request)

    def request(self, index: int = 0) -> EngineRequest:
        """Wait for the request with this index."""
        arrived = until(self._loop, self._arrived, lambda: len(self.requests) > index)
        assert arrived, f"the engine saw {len(self.requests)} requests, expected more than {index}"
        return self.requests[index]

    def stop(self) -> None:
        def close() -> None:
            self._server.close()
            for connection in list(self.open):
                connection.transport.abort()

        self._loop.call(close)
