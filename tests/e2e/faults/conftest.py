"""The scenery of the fault matrix: each test runs on loopback sockets and on virtual time.

`scale` shortens the time-outs of a router where time is real; on virtual time they are those that a user gets.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from tests.support.router import Router

_E2E = Path(__file__).parents[1]


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_Virtual = _load("virtual_scenery", _E2E / "disagg" / "conftest.py").Virtual


@pytest.fixture(params=["sockets", "virtual"])
def place(request: Any) -> str:
    """Where a test runs."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def scale(place: str) -> float:
    """What time-outs are multiplied with."""
    return 0.1 if place == "sockets" else 1.0


@pytest.fixture
def loop(place: str, request: Any, wire: Any) -> Iterator[Any]:
    if place == "sockets":
        yield request.getfixturevalue("real_loop")
        return
    virtual = _Virtual(wire.Client)
    yield virtual
    virtual.close()


class _Reader(asyncio.Protocol):
    """Answers probes, and hands everything else to the engine."""

    def __init__(self, engine: Raw) -> None:
        self._engine = engine

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._engine.open.add(self.transport)
        self._engine.connected(self.transport)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET "):
            body = b'{"object":"list","data":[]}'
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        else:
            self._engine.asked(self.transport, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.open.discard(self.transport)
        self._engine.lost.append(exc)


def _nothing(_: asyncio.Transport, __: bytes) -> None:
    """Do nothing with what was read."""


class Raw:
    """An engine below HTTP: what it does with a connection and with the first bytes of a request is a test's own."""

    def __init__(
        self,
        loop: Any,
        asked: Callable[[asyncio.Transport, bytes], object],
        connected: Callable[[asyncio.Transport], object] = bool,
    ) -> None:
        self._loop = loop
        self.asked, self.connected = asked, connected
        self.lost: list[Exception | None] = []
        self.open: set[asyncio.Transport] = set()
        self._server = loop.run(self._listen(0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def _listen(self, port: int) -> Any:
        return await asyncio.get_running_loop().create_server(lambda: _Reader(self), "127.0.0.1", port)

    def wake(self) -> None:
        """Read to the end from here on: who does not read hears of no close."""
        self.asked = _nothing
        for transport in list(self.open):
            transport.resume_reading()

    def stop(self) -> None:
        def close() -> None:
            self._server.close()
            for transport in list(self.open):
                transport.abort()

        self._loop.call(close)


@pytest.fixture
def raw_engine(loop: Any) -> Iterator[Callable[..., Raw]]:
    """Start an engine that hands its connections to functions."""
    running: list[Raw] = []

    def start(*functions: Any) -> Raw:
        running.append(Raw(loop, *functions))
        return running[-1]

    yield start
    for engine in running:
        engine.stop()


def at_rest(up: Router) -> bool:
    """Nothing is held for anybody (P2)."""
    gateway = up.app.gateway
    open_ones = sum(e.in_flight + e.pending_prefill_tokens + e.active_tokens for e in gateway.fleet.endpoints.values())
    return not open_ones and not gateway.runs and not gateway.recovery.doors.waiting


@pytest.fixture
def rests() -> Callable[[Router], bool]:
    """Tell whether a router comes to rest: every count back at zero."""
    return lambda up: up.eventually(lambda: at_rest(up))
