"""The composition root: the only file that knows every concrete class, and the order in which they come and go.

What a first request does not need (admin listener, metrics library, database) is loaded after the public listener is
open, so that the router serves within a fraction of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import random
import secrets
import signal
import time
from typing import Any

from turnout.config.schema import Config
from turnout.core.fleet.registry import Fleet
from turnout.core.scheduling.explain import explain
from turnout.gateway.catalogue import Catalogue
from turnout.gateway.principals import Principals
from turnout.gateway.prober import Prober
from turnout.gateway.service import Gateway, Sources
from turnout.gateway.upstream import Upstream
from turnout.http.server import Listener
from turnout.ledger.writer import Ledger
from turnout.telemetry.meter import Meter

_FLUSH_S = 5.0
_SECOND_SIGNAL_S = 5.0
_GC_THRESHOLD = (50_000, 20, 100)


def now_ms() -> int:
    """Return UTC milliseconds."""
    return time.time_ns() // 1_000_000


class App:
    """One router process."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.meter = Meter()
        self.ledger = Ledger(config.ledger, router_id=_router_id(), clock_ms=now_ms) if config.ledger.url else None
        self.port = 0
        self.admin_port = 0
        self._stopping = asyncio.Event()
        self._signals = 0
        self._admin: Any = None

    async def run(self) -> None:
        """Serve until a signal, then drain and stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        await self.start()
        await self._stopping.wait()
        await self.stop()

    async def start(self) -> None:
        """Open the public listener, then everything that need not be there first."""
        config = self._config
        self.gateway = self._gateway()
        self._prober = Prober(self.gateway, config.probe)
        self.gateway.on_unreachable = self._prober.failed
        self.listener = Listener(config.server, self.gateway, time.monotonic)
        host, _, port = config.server.listen.rpartition(":")
        self.port = await self.listener.start(host.strip("[]"), int(port))
        self.gateway.start()
        self._prober.start()
        if self.ledger is not None:
            self.ledger.start()
        if config.server.admin_listen:
            await self._start_admin()
        # What lives now lives for ever: the collector need not look at it again, and has little else to find.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLD)

    async def stop(self) -> None:
        """Drain: accepted exchanges end, then listeners, engines' connections and the ledger close, in this order."""
        gateway, config = self.gateway, self._config
        await self._pause(config.drain.notice_s)
        gateway.draining = True
        self.listener.drain()
        deadline = time.monotonic() + config.drain.grace_s
        while gateway.runs and time.monotonic() < deadline:
            if self._signals > 1:
                deadline = min(deadline, time.monotonic() + _SECOND_SIGNAL_S)
            await asyncio.sleep(0.02)
        gateway.interrupt_all()
        self._prober.stop()
        await asyncio.sleep(0)
        await self.listener.stop()
        gateway.stop()
        if self._admin is not None:
            await self._admin.stop()
        if self.ledger is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.ledger.close, _FLUSH_S)

    def request_stop(self) -> None:
        """Begin to stop, as a signal would."""
        self._signalled()

    def _signalled(self) -> None:
        self._signals += 1
        self._stopping.set()

    async def _pause(self, seconds: float) -> None:
        if seconds:
            await asyncio.sleep(seconds)

    def _gateway(self) -> Gateway:
        config = self._config
        now = time.monotonic()
        fleet = Fleet(
            config.scheduling, config.prefix, config.breaker, probe_failures=config.probe.failures, models=tuple(config.model)
        )
        for endpoint in config.endpoint:
            fleet.add(endpoint, now)
        principals = Principals(config.key, open_mode=config.auth.mode == "open", utc_s=time.time)
        rng = random.Random(config.scheduling.seed)  # noqa: S311 - spreads load, guards nothing
        return Gateway(
            server=config.server,
            relay=config.relay,
            timeout=config.timeout,
            retry=config.retry,
            prefix=config.prefix,
            fleet=fleet,
            catalogue=Catalogue(config.model, fleet.models, config.models.default),
            principals=principals,
            upstreams={e.name: Upstream(e, config.pool, config.timeout.connect_s) for e in config.endpoint},
            meter=self.meter,
            record=self.ledger.record if self.ledger is not None else _forget,
            sources=Sources(time.monotonic, now_ms, functools.partial(secrets.randbits, 80), rng),
            decisions_max=config.scheduling.decisions_max,
            router_id=_router_id(),
        )

    # -- the admin listener's view (console.admin.AdminSource) --------------------------------------------------------

    async def _start_admin(self) -> None:
        from turnout.console.admin import admin_app  # noqa: PLC0415 - a framework that no request waits for
        from turnout.console.listener import AdminListener  # noqa: PLC0415

        host, _, port = self._config.server.admin_listen.rpartition(":")
        self._admin = AdminListener(lambda: admin_app(self), host.strip("[]"), int(port))
        self.admin_port = await self._admin.start()

    def decision(self, call_id: str) -> dict[str, Any] | None:
        """Return the explanation of a recent decision."""
        for known, decision in reversed(self.gateway.decisions):
            if known == call_id:
                return explain(decision, call_id)
        return None

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Tell whether the router takes requests."""
        return not self.gateway.draining, {"exchanges": len(self.gateway.runs)}


def _forget(_: object) -> None:
    """Take the place of a ledger that is switched off."""


@functools.cache
def _router_id() -> str:
    with contextlib.suppress(OSError):
        return f"{os.uname().nodename}-{os.getpid()}"
    return str(os.getpid())
