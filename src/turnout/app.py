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
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from turnout import __version__
from turnout.accounting import LedgerSource, explained, keep_accounts, keep_door_accounts, ledger_stats, open_books
from turnout.choosing import choice_pages, choice_stats, choose_and_replay, restore_pins
from turnout.config.errors import ConfigError
from turnout.config.schema import Config
from turnout.config.snapshot import snapshot_of
from turnout.core.fleet.registry import Fleet
from turnout.core.fleet.view import view
from turnout.core.scheduling.disagg import pairing
from turnout.gateway import reload
from turnout.gateway.catalogue import Catalogue
from turnout.gateway.drain import drain
from turnout.gateway.fleet_changes import FleetChanges
from turnout.gateway.instruments import Entropy, Sources
from turnout.gateway.legs_stats import disagg_document, disagg_stats
from turnout.gateway.prober import Prober
from turnout.gateway.service import Gateway
from turnout.gateway.upstream import Upstream
from turnout.http.listener import Listener
from turnout.http.timeslice import ask_for_short_slices
from turnout.observation.observer import Observer
from turnout.telemetry.logs import LogSink
from turnout.telemetry.meter import EndpointRow, Meter
from turnout.telemetry.watchdog import Watchdog

if TYPE_CHECKING:
    from turnout.bundles.watch import Watch
    from turnout.ledger.writer import Ledger

_FLUSH_S = 5.0
_SWITCH_S = 0.0005
# Sections that something was opened or built with: a reload names their differences and leaves them.
_FIXED = ("server", "breaker", "probe", "scheduling", "prefix", "drain", "ledger", "log", "auth", "budget", "prices")
_GC_THRESHOLD = (50_000, 20, 100)


def now_ms() -> int:
    """Return UTC milliseconds."""
    return time.time_ns() // 1_000_000


class App:
    """One router process."""

    def __init__(
        self,
        config: Config,
        reread: Callable[[], Config] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`reread` reads the configuration again, for SIGHUP; it raises ConfigError when that is wrong."""
        self._config = config
        self._clock = clock
        self._reread = reread or (lambda: config)
        self.meter = Meter()
        self._sink = LogSink(config.log)
        self.log = self._sink.logger(component="router")
        self.ledger = open_books(config, _router_id(), now_ms, self.log.warning)
        self.port = 0
        self.admin_port = 0
        self._stopping = asyncio.Event()
        self._signals = 0
        self._stop: asyncio.Task[None] | None = None
        self._admin: Any = None
        self._bundles: Watch | None = None
        self._coordinator: Any = None
        self._door_pages: list[Any] = []

    @property
    def address(self) -> str:
        """The public address, host:port."""
        return f"{self._config.server.listen.rpartition(':')[0]}:{self.port}"

    async def run(self, on_ready: Callable[[], object] = bool) -> None:
        """Serve until a signal, then drain and stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        # First of all: what is started from here on does not inherit it.
        ask_for_short_slices()
        await self.start()
        watchdog = Watchdog(lambda seconds: self.log.error("loop_blocked", seconds=round(seconds, 3)))
        watchdog.start()
        on_ready()
        await self._stopping.wait()
        await self.stop()
        watchdog.stop()

    async def start(self) -> None:
        """Open the public listener, then everything that need not be there first."""
        config = self._config
        self.gateway = self._new_gateway()
        keep_accounts(self.gateway, self.ledger, config)
        self._bundles = choose_and_replay(self.gateway, config, self.log, self.ledger)
        self._prober = Prober(self.gateway, config.probe)
        self.gateway.on_unreachable = self._prober.failed
        self.gateway.recovery.health.tell = lambda name, fields: self.log.warning(name, **fields)
        self.changes = FleetChanges(self.gateway, self._prober, config.endpoint, config.pool, config.timeout.connect_s)
        self.listener = Listener(config.server, self.gateway, self._clock, config.timeout.total_s)
        host, _, port = config.server.listen.rpartition(":")
        self.port = await self.listener.start(host.strip("[]"), int(port))
        self.gateway.start()
        self._prober.start()
        self._observer = self._new_observer()
        self.changes.on_join = self._observer.scraper.follow
        self.gateway.recovery.hear_load = self._observer.load_headers.heard
        self._observer.start()
        if self._bundles is not None:
            self._bundles.start()
        if self.ledger is not None:
            self.ledger.start()
        self._restoring = asyncio.get_running_loop().create_task(restore_pins(self.gateway, config, self.ledger))
        if config.coordinator.enabled:
            await self._start_coordinator()
        if config.server.admin_listen:
            await self._start_admin()
        # The writer thread may hold the interpreter for a switch interval at a time; 5 ms would be most of the p99.
        sys.setswitchinterval(_SWITCH_S)
        # What lives now lives for ever: the collector need not look at it again, and has little else to find.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLD)

    async def stop(self) -> None:
        """Drain and close everything; whoever asks again waits for the same end."""
        if self._stop is None:
            self._stop = asyncio.get_running_loop().create_task(self._end())
        await asyncio.shield(self._stop)

    async def _end(self) -> None:
        """Accepted exchanges end, then listeners, engines' connections and the ledger close, in this order."""
        gateway = self.gateway
        left_s = await drain(gateway, self.listener, self._config.drain, lambda: self._signals > 1)
        if self._coordinator is not None:
            await self._coordinator.stop(left_s)
        await self._prober.stop()
        await self._observer.stop()
        if self._bundles is not None:
            await self._bundles.stop()
        await self.listener.stop()
        gateway.stop()
        if self._admin is not None:
            await self._admin.stop()
        if self.ledger is not None:
            lost = await asyncio.get_running_loop().run_in_executor(None, self.ledger.close, _FLUSH_S)
            if lost:
                self.log.error("ledger_incomplete", calls=lost)
        self._sink.close()

    def request_stop(self) -> None:
        """Begin to stop; the second time, do not wait for open exchanges any longer."""
        self._signals += 1
        self._stopping.set()

    def reload(self) -> None:
        """Read the configuration again and swap it in; a wrong one leaves everything as it was (X5)."""
        if self._bundles is not None:
            self._bundles.reload_now()
        try:
            config = self._reread()
        except ConfigError as wrong:
            self.log.warning("reload_refused", problems=str(wrong))
            return
        fixed = [name for name in _FIXED if getattr(config, name) != getattr(self._config, name)]
        told = reload.apply(self.gateway, self.changes, snapshot_of(config))
        self.log.info("reloaded", **told, needs_restart=fixed)

    def _new_observer(self) -> Observer:
        config, gateway = self._config, self.gateway
        return Observer(
            gateway.fleet,
            config.endpoint,
            config.load,
            config.kv_events,
            clock=self._clock,
            weight_version=lambda model: gateway.catalogue.entry(model).weight_version,
            on_change=gateway.recovery.reported,
        )

    def _new_gateway(self) -> Gateway:
        config = self._config
        now = self._clock()
        fleet = Fleet(
            config.scheduling,
            config.prefix,
            config.breaker,
            probe_failures=config.probe.failures,
            models=tuple(config.model),
            load=config.load,
        )
        fleet.pairing = pairs = pairing(config.disagg)
        pairs.alarm = lambda name, fields: self.log.warning(name, **fields)
        for endpoint in config.endpoint:
            fleet.add(endpoint, now)
        snapshot = snapshot_of(config)
        rng = random.Random(config.scheduling.seed)  # noqa: S311 - spreads load, guards nothing
        return Gateway(
            server=config.server,
            relay=config.relay,
            timeout=config.timeout,
            retry=config.retry,
            prefix=config.prefix,
            fleet=fleet,
            recovery=snapshot.recovery,
            catalogue=Catalogue(
                config.model, [*fleet.models, *snapshot.further_models], config.models.default, config.timeout
            ),
            principals=snapshot.principals,
            upstreams={e.name: Upstream(e, config.pool, config.timeout.connect_s) for e in config.endpoint},
            meter=self.meter,
            record=self.ledger.record if self.ledger is not None else _forget,
            sources=Sources(self._clock, now_ms, Entropy(), rng),
            decisions_max=config.scheduling.decisions_max,
            router_id=_router_id(),
        )

    async def _start_coordinator(self) -> None:
        from turnout.console.coordinator_pages import routes
        from turnout.coordinator.listener import CoordinatorListener  # loads the ZeroMQ library
        from turnout.coordinator.stats import View
        from turnout.coordinator.tokenizers import load_tokenizer

        def report(level: str, event: str, fields: dict[str, Any]) -> None:
            getattr(self.log, level)(event, **fields)

        def shut() -> None:
            self._closing = asyncio.get_running_loop().create_task(self._coordinator.stop(config.drain.grace_s))

        config = self._config
        tokenizer = load_tokenizer(config.coordinator.tokenizer)
        self._coordinator = listener = CoordinatorListener(
            config.coordinator, config.affinity, report=report, tokenizer=tokenizer, on_shutdown=shut
        )
        self._door_pages = routes(View(listener))
        keep_door_accounts(listener.door, self.gateway, self.ledger, config.coordinator.model)
        if tokenizer is not None and config.coordinator.model:
            from turnout.coordinator.mirror import Mirror
            from turnout.gateway.text_upstream import TextUpstream

            gateway = self.gateway
            listener.on_sweep = Mirror(listener, tokenizer, gateway.fleet, gateway.upstreams, TextUpstream).sweep
        self.log.info("coordinator_listening", address=await listener.start())

    async def _start_admin(self) -> None:
        from turnout.console.listener import AdminListener

        host, _, port = self._config.server.admin_listen.rpartition(":")
        self._admin = AdminListener(self._admin_app, host.strip("[]"), int(port), report=self.log.fault)
        self.admin_port = await self._admin.start()

    def _coordinator_stats(self) -> dict[str, Any]:
        if self._coordinator is None:
            return {}
        from turnout.coordinator.stats import stats

        return stats(self._coordinator.door)

    def _admin_app(self) -> object:
        from turnout.console.admin import Tokens, admin_app
        from turnout.console.disagg_pages import routes as disagg_routes
        from turnout.console.ledger_pages import routes as ledger_routes
        from turnout.console.registration_pages import routes as registration_routes
        from turnout.telemetry.prometheus import Exposition

        facts = Facts(self.gateway, self.listener, self.meter, self.ledger)
        exposition = Exposition(
            self.meter,
            fleet_rows=facts.rows,
            queue_depths=facts.queue_depths,
            prefix_stats=lambda: {
                **facts.prefix_stats(),
                **self._observer.stats(),
                **(self.gateway.tokenizing.stats() if self.gateway.tokenizing is not None else {}),
            },
            ledger_stats=functools.partial(ledger_stats, self.ledger),
            coordinator_stats=self._coordinator_stats,
            choice_stats=functools.partial(choice_stats, self.gateway, self._bundles),
            disagg_stats=lambda: disagg_stats(self.gateway.fleet, self._clock()),
            log_stats=self._sink.stats,
            version=__version__,
        )
        facts.metrics = exposition.render  # type: ignore[method-assign]  # the page is the exposition's
        pages = ledger_routes(LedgerSource(self.ledger)) if self.ledger is not None else ()
        disagg_pages = disagg_routes(lambda: disagg_document(self.gateway, self._clock()))
        pages = (*pages, *choice_pages(self.gateway, self._bundles), *self._door_pages, *disagg_pages,
                 *registration_routes(self.changes, self._config.server.registration_digest))  # fmt: skip
        tokens = Tokens(self._config.server.admin_digest, self._config.server.read_only_digest)
        return admin_app(facts, report=self.log.fault, changes=self.changes, pages=pages, tokens=tokens)


class Facts:
    """What the admin listener may read (`console.admin.AdminSource`), from the parts that know it."""

    def __init__(self, gateway: Gateway, listener: Listener, meter: Meter, ledger: Ledger | None) -> None:
        self._gateway, self._listener, self._meter, self._ledger = gateway, listener, meter, ledger

    def metrics(self) -> bytes:
        """Return the metrics page."""
        return b""

    def decision(self, id: str) -> dict[str, Any] | None:  # noqa: A002 - the word of the path
        """Return the explanation of a decision: a recent one whole, an older one as the ledger has it."""
        for known, decision in reversed(list(self._gateway.decisions)):
            if known == id:
                return explained(self._gateway, id, decision)
        return self._ledger.pages().reader.decision(id) if self._ledger is not None else None

    def endpoints(self) -> list[dict[str, Any]]:
        """Return every endpoint with state and load."""
        now = time.monotonic()
        return [view(endpoint, now) for endpoint in self._gateway.fleet.endpoints.values()]

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Tell whether the router takes requests."""
        return self._gateway.ready, {"exchanges": len(self._gateway.runs)}

    def calls(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest rows of the ledger."""
        return self._ledger.pages().reader.recent_calls(limit) if self._ledger is not None else []

    def rows(self) -> list[EndpointRow]:
        """Return one row per endpoint for the metrics, and bring the plain gauges up to date."""
        meter, listener, relayed = self._meter, self._listener, self._gateway.relayed
        pools = [upstream.pool for upstream in self._gateway.upstreams.values()]
        meter.connections_open = len(listener.connections)
        meter.connections_total = listener.connections_total
        meter.exchanges_open = len(self._gateway.runs)
        meter.bodies_held_bytes = listener.body_bytes
        meter.upstream_connects_total = sum(pool.connects_total for pool in pools)
        meter.upstream_connect_failures_total = sum(pool.connect_failures_total for pool in pools)
        meter.upstream_reuses_total = sum(pool.reuses_total for pool in pools)
        meter.relay_events_inspected_total = relayed.inspected
        meter.relay_events_oversized_total = relayed.oversized
        meter.relay_events_dropped_total = relayed.dropped
        meter.relay_keepalives_total = relayed.keepalives
        meter.retry_budget_exhausted_total = sum(b.refused_total for b in self._gateway.budgets.values())
        for name, count in self._gateway.recovery.counted().items():
            setattr(meter, name, count)
        return [
            EndpointRow(
                e.name,
                e.in_flight,
                e.waiting,
                e.kv_usage_ratio,
                unreachable=e.unreachable,
                probe_failing=e.probe_failing,
                breaker=str(e.breaker.state),
            )
            for e in self._gateway.fleet.endpoints.values()
        ]

    def queue_depths(self) -> dict[str, int]:
        """Return how many exchanges wait for an attempt, by model: those that the retry budget holds back (N5)."""
        waiting = [run.model for run in self._gateway.runs if run.exchange and run.exchange.waits]
        return {model: waiting.count(model) for model in self._gateway.fleet.models}

    def prefix_stats(self) -> dict[str, Any]:
        """Return the prefix index's figures."""
        index = self._gateway.fleet.index
        return {
            "entries": index.entries,
            "bytes": index.memory_bytes,
            "slots": index.slots,
            "evictions": dict(index.evicted),
            "purges": index.purges,
        }


def _forget(_: object) -> None:
    """Take the place of a ledger that is switched off."""


@functools.cache
def _router_id() -> str:
    with contextlib.suppress(OSError):
        return f"{os.uname().nodename}-{os.getpid()}"
    return str(os.getpid())
