"""Simulated engines in both roles of both flows, and a router in front of them, all on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from turnout.sim.faults import Fault
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

FLOWS = ("nixl", "bootstrap")
SPEED = 20.0


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
                }
            )

    def _server(self, options: EngineOptions) -> SimEngineServer:
        async def make() -> SimEngineServer:
            return SimEngineServer(options)

        server: SimEngineServer = self._loop.run(make())
        return server

    def inject(self, name: str, **fault: Any) -> None:
        self._loop.call(lambda: self.engines[name].inject(Fault(**fault)))

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
def eventually(loop: Any) -> Callable[[Callable[[], bool]], bool]:
    return lambda holds: settle(holds, loop)


@pytest.fixture
def start_router(router: Any) -> Any:
    """As `router`; the name leaves `router` to what it starts."""
    return router
