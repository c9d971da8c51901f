"""How the writer's database is opened, away from the event loop: everything here may load SQLAlchemy and block."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout.ledger import upgrade
from turnout.ledger.decoding import StoreSink
from turnout.ledger.drain import RETRY_FIRST_S, RETRY_MAX_S
from turnout.ledger.sink import LedgerRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.core import options
    from turnout.ledger.backend import HotRoute, Turn
    from turnout.ledger.sink import Sink
    from turnout.ledger.upgrade import OnEvent, Prepare

# A server that does not answer in this time is taken for down; serving starts without it.
_START_CHECK_S: Final = 2
_NICENESS: Final = 5


def check(url: str) -> None:
    """Look at what stands at an address before serving starts; a server that does not answer is waited for later.

    Raises:
        LedgerRefusedError: the schema does not fit this code.
    """
    if upgrade.is_file(url):
        upgrade.check(upgrade.path_of(url))
        return
    from sqlalchemy.exc import SQLAlchemyError

    from turnout.ledger import server_upgrade

    with contextlib.suppress(SQLAlchemyError):
        server_upgrade.check(url, connect_timeout_s=_START_CHECK_S)


def load(url: str) -> None:
    """Load what opening, storing and pruning need, so that it is there before the first batch."""
    from turnout.ledger import prices, store  # noqa: F401

    if upgrade.is_file(url):
        from turnout.ledger import sqlite  # noqa: F401
    else:
        from turnout.ledger import postgres, server_upgrade  # noqa: F401


def open_store(
    options: options.Ledger,
    *,
    router_id: str,
    clock_ms: Callable[[], int],
    on_event: OnEvent,
    prices: str = "",
    prepare: Prepare = upgrade.prepare,
) -> Sink:
    """Bring the database to this schema, or check that it has it, take in the price file, and give its store.

    Raises:
        LedgerRefusedError: the schema does not fit this code.
        Exception: the database cannot be opened at the moment.
    """
    days = {
        "retention_days": options.retention_days,
        "decisions_days": options.decisions_days,
        "hourly_days": options.hourly_days,
    }
    if upgrade.is_file(options.url):
        from turnout.ledger import sqlite

        path = upgrade.path_of(options.url)
        prepare(path, clock_ms=clock_ms, on_event=on_event)
        _import_prices(options.url, prices, clock_ms(), on_event)
        return StoreSink(sqlite.open_store(path, router_id=router_id, clock_ms=clock_ms, **days))
    from turnout.ledger import postgres, server_upgrade

    server_upgrade.check(options.url)
    _import_prices(options.url, prices, clock_ms(), on_event)
    return StoreSink(postgres.open_store(options.url, router_id=router_id, clock_ms=clock_ms, **days))


def hot_routes(url: str, now_ms: int) -> list[HotRoute]:
    """Ask for the hot routes of the last hour's sessions; none while there is no database that answers."""
    from turnout.ledger import derived, queries

    with contextlib.suppress(*queries.errors(url)), queries.reading(url) as conn:
        return derived.recent_hot_routes(conn, now_ms)
    return []


def recent_turns(url: str, since_ms: int, most: int) -> list[Turn]:
    """Ask for the newest turns; none while there is no database that answers."""
    from turnout.ledger import queries, turns

    with contextlib.suppress(*queries.errors(url)):
        return turns.recent_turns(url, since_ms, most)
    return []


class Opener:
    """Opens the database in a thread of its own: calls are spooled meanwhile, however long a migration takes.

    At normal priority: loading the library holds the interpreter's lock, and what stands back for requests while it
    holds it makes them wait for longer, not for less.
    """

    def __init__(
        self,
        open_sink: Callable[[], Sink],
        *,
        delay_s: float,
        on_event: OnEvent,
        on_open: Callable[[], None],
        spool_bytes: Callable[[], int],
    ) -> None:
        """Open it `delay_s` after `start`, and tell `on_open`."""
        self.sink: Sink | None = None
        self.done = threading.Event()
        """There is a sink, or there never will be one."""
        self._open_sink = open_sink
        self._delay_s = delay_s
        self._on_event = on_event
        self._on_open = on_open
        self._spool_bytes = spool_bytes
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-opener", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Try once more at most, at once."""
        self._closing.set()

    def _run(self) -> None:
        retry_s, failing = RETRY_FIRST_S, False
        pause_s = self._delay_s
        while not self.done.is_set():
            self._closing.wait(pause_s)
            closing = self._closing.is_set()
            try:
                self.sink = self._open_sink()
                self.done.set()
                self._on_open()
            except LedgerRefusedError as error:
                self._on_event("ledger_refused", error=str(error))
                self.done.set()
            except Exception as error:  # noqa: BLE001 - whatever keeps a file from opening is tried again
                if not failing:
                    self._on_event("ledger_down", kind="unreachable", error=str(getattr(error, "orig", error)))
                failing = True
                pause_s, retry_s = retry_s, min(RETRY_MAX_S, retry_s * 2)
                if closing:
                    self.done.set()
            else:
                if failing:
                    self._on_event("ledger_up", spool_bytes=self._spool_bytes())


def _import_prices(url: str, file: str, now_ms: int, on_event: OnEvent) -> None:
    """Append the configured price file to the book; a bad one changes nothing, and serving goes on with the book."""
    if not file:
        return
    from turnout.ledger import queries
    from turnout.ledger.prices import add_once

    try:
        with queries.changing(url) as conn:
            version = add_once(conn, Path(file), now_ms)
        if version is not None:
            on_event("prices_imported", file=file, version=version)
    except (LedgerRefusedError, OSError) as error:
        on_event("prices_refused", file=file, error=str(error))


def stand_back() -> None:
    """Leave most of a contended core to the thread that serves requests, where the system offers that.

    Not SCHED_IDLE: put aside by a third process while it holds the interpreter's lock, such a thread keeps everybody
    waiting for seconds (docs/adr/0011).
    """
    if sys.platform == "linux":  # elsewhere niceness belongs to the process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
