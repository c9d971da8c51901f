"""Simulated engines in both roles of both flows, and a router in front of them: on loopback, and on virtual time.

Each test that takes these fixtures is run twice. On virtual time the same router and the same engines run on one loop
in this thread, joined by memory; whatever waits lets the time pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from turnout.sim.faults import Fault
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer
from turnout.sim.virtual_net import VirtualLoop

T = TypeVar("T")
FLOWS = ("nixl", "bootstrap")
SPEED = 20.0
PATIENCE_S = 60.0


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Mooncake's rows run on virtual time: over sockets they differ from bootstrap in two members of a body."""
    items[:] = [item for item in items if not {"sockets", "mooncake"} <= set(_values(item))]


def _values(item: Any) -> list[Any]:
    call = getattr(item, "callspec", None)
    return [value for value in call.params.values() if isinstance(value, str)] if call is not None else []


class Virtual:
    """Stands in for the loop of `tests/e2e`: runs in the caller, whenever the caller waits."""

    def __init__(self, client_class: type[Any]) -> None:
        self.loop = VirtualLoop()
        self.clock = self.loop.time
        self._client_class = client_class

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def call(self, function: Callable[[], T]) -> T:
        async def work() -> T:
            return function()

        return self.run(work())

    def settle(self) -> None:
        if not self.loop.is_running():
            self.run(asyncio.sleep(0.001))

    def eventually(self, holds: Callable[[], bool], within_s: float = 5.0) -> bool:
        until = self.loop.time() + within_s
        while self.loop.time() < until:
            if self.call(holds):
                return True
            self.run(asyncio.sleep(0.002))
        return False

    def connect(self, port: int) -> Any:
        return client_on(self, self._client_class, port)

    def close(self) -> None:
        pending = asyncio.all_tasks(self.loop)
        for task in pending:
            task.cancel()
        self.run(asyncio.sleep(0))
        self.loop.close()


class _Wire(asyncio.Protocol):
    """The client's end of a connection."""

    def __init__(self) -> None:
        self.data = b""
        self.ended = self.reset = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.ended = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended, self.reset = True, exc is not None


def client_on(virtual: Virtual, base: type[Any], port: int) -> Any:
    """A client with the vocabulary of the one with a socket."""

    class VirtualClient(base):  # type: ignore[misc]  # known only as the fixture hands it over
        def __init__(self) -> None:
            self.buffer = b""
            self._wire = _Wire()
            self._transport, _ = virtual.run(virtual.loop.create_connection(lambda: self._wire, "127.0.0.1", port))

        def send(self, *pieces: bytes) -> None:
            for piece in pieces:
                self._transport.write(piece)

        def _more(self) -> None:
            virtual.eventually(lambda: bool(self._wire.data) or self._wire.ended, PATIENCE_S)
            if not self._wire.data:
                if self._wire.reset:
                    raise ConnectionResetError
                raise EOFError(f"closed after {self.buffer!r}")
            data, self._wire.data = self._wire.data, b""
            self.buffer += data

        def rest(self) -> bytes:
            pieces, self.buffer = [self.buffer], b""
            assert virtual.eventually(lambda: bool(self._wire.ended), PATIENCE_S)
            pieces.append(self._wire.data)
            return b"".join(pieces)

        def close(self, *, reset: bool = False) -> None:
            if reset:
                self._transport.get_extra_info("socket").resets = True
            self._transport.abort()

    return VirtualClient()


@pytest.fixture(params=["sockets", "virtual"])
def place(request: Any) -> str:
    """Where a test runs."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def loop(place: str, request: Any, wire: Any) -> Iterator[Any]:
    if place == "sockets":
        yield request.getfixturevalue("real_loop")
        return
    virtual = Virtual(wire.Client)
    yield virtual
    virtual.close()


class Fleet:
    """Engines by name, with the endpoint tables of a router's configuration."""

    def __init__(self, loop: Any, model: str, flow: str, roles: dict[str, str], **options: Any) -> None:
        self._loop = loop
        self.flow = flow
        self.engines: dict[str, SimEngineServer] = {}
        self.tables: list[dict[str, Any]] = []
        for name, role in roles.items():
            server = self._server(EngineOptions(name=name, model=model, role=role, speed=SPEED, **options))  # type: ignore[arg-type]
            host, port = loop.run(server.start())
            self.engines[name] = server
            self.tables.append(
                {
                    "name": name,
                    "url": f"http://{host}:{port}",
                    "models": [model],
                    "role": role,
                    "kv_transport": flow,
                    "bootstrap_port": port,
                    "kv_ports": [port, port],
                }
            )

    def _server(self, options: EngineOptions) -> SimEngineServer:
        async def make() -> SimEngineServer:
            return SimEngineServer(options, clock=self._loop.clock)

        server: SimEngineServer = self._loop.run(make())
        return server

    def inject(self, name: str, **fault: Any) -> None:
        self._loop.call(lambda: self.engines[name].inject(Fault(**fault)))

    def inject_here(self, name: str, **fault: Any) -> None:
        """As `inject`, for callers that run on the loop."""
        self.engines[name].inject(Fault(**fault))

    def clear(self, name: str) -> None:
        self._loop.call(self.engines[name].clear_faults)

    def states(self) -> dict[str, dict[str, Any]]:
        def all_states() -> dict[str, dict[str, Any]]:
            return {name: server.state() for name, server in self.engines.items()}

        states: dict[str, dict[str, Any]] = self._loop.call(all_states)
        return states

    def served(self) -> dict[str, int]:
        return {name: state["requests_total"] for name, state in self.states().items()}

    def idle(self) -> bool:
        return all(
            state["running"] == state["waiting"] == state["pinned"] == state["offers"] == 0
            for state in self.states().values()
        )

    def kill(self, name: str) -> None:
        self._loop.run(self.engines[name].stop())

    def restart(self, name: str) -> None:
        self._loop.run(self.engines[name].start())

    def stop(self) -> None:
        for server in self.engines.values():
            self._loop.run(server.stop())


@pytest.fixture
def fleet_of(loop: Any, wire: Any) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(flow: str, roles: dict[str, str] | None = None, **options: Any) -> Fleet:
        wanted = roles or {"p0": "prefill", "p1": "prefill", "d0": "decode", "d1": "decode"}
        made.append(Fleet(loop, wire.MODEL, flow, wanted, **options))
        return made[-1]

    yield make
    for fleet in made:
        fleet.stop()


@pytest.fixture(params=FLOWS)
def flow(request: Any) -> str:
    chosen: str = request.param
    return chosen


def settle(holds: Callable[[], bool], loop: Any, seconds: float = 3.0) -> bool:
    """Wait on the loop until a fact is true."""

    async def pause() -> None:
        await asyncio.sleep(0.01)

    for _ in range(int(seconds / 0.01)):
        if holds():
            return True
        loop.run(pause())
    return False


@pytest.fixture
def eventually(loop: Any) -> Callable[..., bool]:
    return lambda holds, seconds=3.0: settle(holds, loop, seconds)


@pytest.fixture
def start_router(router: Any) -> Any:
    """As `router`; the name leaves `router` to what it starts."""
    return router
