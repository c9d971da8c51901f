"""A real router on loopback, engines that follow a script, and raw client sockets: every byte is a test's own.

Routers and engines share one uvloop on a thread; tests run beside it and block on sockets and conditions, never on
sleeps. What they are made of stands in `tests/support`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.engine import Engine
from tests.support.loop import Loop
from tests.support.router import Router, config_of
from tests.support.wire import Player, Script, Wire


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


def _routers(loop: Loop) -> Iterator[Callable[..., Router]]:
    running: list[Router] = []

    def start(*engines: Engine, **overrides: Any) -> Router:
        """Start a router over these engines; overrides are tables of the configuration."""
        router = Router(loop, config_of(list(engines), overrides))
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
