"""Reading what is stored: query-only connections, one indexed query per question, never from the event loop."""

from __future__ import annotations

import base64
import binascii
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
import sqlalchemy as sa

from turnout.ledger import connection, schema

if TYPE_CHECKING:
    from pathlib import Path

ROWS_MAX: Final = 1_000
EXPORT_MAX: Final = 10_000
HOLD_BACK_MS: Final = 60_000
"""Longer than any transaction lasts: no row is ever committed behind a cursor that passed."""
QUERY_LIMIT_S: Final = 10.0
# SQLite asks this often, in steps of its virtual machine, whether to go on: about every millisecond.
_STEPS_PER_CHECK: Final = 100_000
_SERVER_NOW = sa.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
_TABLES: Final = {"calls": schema.calls, "attempts": schema.attempts}

Record = dict[str, Any]


class CursorError(ValueError):
    """A cursor is not one that a page gave."""


class Page(msgspec.Struct, frozen=True):
    """Rows, and the cursor of the next ones; an empty cursor when there are none."""

    rows: list[Record]
    cursor: str


class Reader:
    """Answers questions about stored calls. Safe in several threads; each question uses a connection of its own.

    Every method raises sqlalchemy.exc.DBAPIError when the database cannot answer (or takes over 10 s).
    """

    def __init__(self, database: Path | str) -> None:
        """Read the file, or the database of a ledger address; nothing is opened before the first question."""
        if isinstance(database, str):
            self._engine = connection.reading(database)
        else:
            self._engine = connection.reading_engine(database)

    @contextmanager
    def connect(self) -> Iterator[sa.Connection]:
        """Open a connection that answers within 10 s or fails."""
        with self._engine.connect() as conn:
            driver = conn.connection.driver_connection
            if isinstance(driver, sqlite3.Connection):
                deadline = time.monotonic() + QUERY_LIMIT_S
                driver.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_PER_CHECK)
            yield conn

    def recent_calls(self, limit: int = 100) -> list[Record]:
        """Give the newest calls by end, newest first; at most 1,000."""
        return self.newest("calls", {}, limit).rows if limit > 0 else []

    def newest(self, table: str, filters: Mapping[str, str], limit: int, cursor: str = "") -> Page:
        """Give rows of `calls` or `attempts` with the parts of their routes, newest end first.

        Args:
            table: which.
            filters: column → value; `provider`, `model` (of the route) and `replica` too.
            limit: at most 1,000.
            cursor: of the page before, or empty.

        Raises:
            CursorError: the cursor is not one.
        """
        rows = _TABLES[table]
        query, names = _with_route(rows)
        for name, value in filters.items():
            query = query.where(names[name] == value)
        if cursor:
            query = query.where(sa.tuple_(rows.c.ended_at_ms, rows.c.seq) < sa.tuple_(*decoded(cursor)))
        limit = max(1, min(limit, ROWS_MAX))
        found = self._rows(query.order_by(rows.c.ended_at_ms.desc(), rows.c.seq.desc()).limit(limit + 1))
        more = len(found) > limit
        found = found[:limit]
        return Page(found, encoded(found[-1]["ended_at_ms"], found[-1]["seq"]) if more else "")

    def call(self, call_id: str) -> Record | None:
        """Give one call with its attempts, in order and with the parts of their routes, or None."""
        calls, attempts = schema.calls, schema.attempts
        found = self._rows(_with_route(calls)[0].where(calls.c.call_id == call_id))
        if not found:
            return None
        legs = _with_route(attempts)[0].where(attempts.c.call_id == call_id)
        return {**found[0], "attempts": self._rows(legs.order_by(attempts.c.attempt_no, attempts.c.seq))}

    def decision(self, call_id: str) -> Record | None:
        """Give the stored explanation of a call, or None."""
        table = schema.decisions
        found = self._rows(sa.select(table.c.json).where(table.c.call_id == call_id))
        return msgspec.json.decode(found[0]["json"], type=dict) if found else None

    def export(self, table: str, *, since_ms: int, cursor: str, limit: int, now_ms: int) -> tuple[Page, bool]:
        """Give rows in the order of their recording, up to a minute before now; and whether more are there already.

        The cursor is never empty: after the last row it waits for the next ones. A row that was recorded twice by two
        routers stands once; deduplicate on call_id (attempt_no, phase) all the same.

        Raises:
            CursorError: the cursor is not one.
        """
        rows = _TABLES[table]
        limit = max(1, min(limit, EXPORT_MAX))
        with self.connect() as conn:
            if conn.dialect.name == "postgresql":
                now_ms = conn.execute(_SERVER_NOW).scalar_one()
            after = decoded(cursor) if cursor else _before(conn, rows, since_ms)
            query = _with_route(rows)[0].where(rows.c.recorded_at_ms <= now_ms - HOLD_BACK_MS).limit(limit + 1)
            if conn.dialect.name == "postgresql":
                query = query.where(sa.tuple_(rows.c.recorded_at_ms, rows.c.seq) > sa.tuple_(*after))
                query = query.order_by(rows.c.recorded_at_ms, rows.c.seq)
            else:
                # One writer that never stamps backwards: `seq` alone is this order, and needs no index of its own.
                query = query.where(rows.c.seq > after[1]).order_by(rows.c.seq)
            found = [dict(row) for row in conn.execute(query).mappings()]
        more = len(found) > limit
        found = found[:limit]
        last = (found[-1]["recorded_at_ms"], found[-1]["seq"]) if found else after
        return Page(found, encoded(*last)), more

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def _rows(self, query: sa.Select[Any]) -> list[Record]:
        with self.connect() as conn:
            return [dict(row) for row in conn.execute(query).mappings()]


def encoded(instant_ms: int, seq: int) -> str:
    """Write a cursor."""
    return base64.urlsafe_b64encode(f"{instant_ms}.{seq}".encode()).decode().rstrip("=")


def decoded(cursor: str) -> tuple[int, int]:
    """Read a cursor.

    Raises:
        CursorError: it is not one that `encoded` wrote.
    """
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
        instant_ms, _, seq = text.partition(".")
        found = (int(instant_ms), int(seq))
    except (ValueError, binascii.Error) as error:
        raise CursorError(f"cursor {cursor[:40]!r}: expected one that a page gave") from error
    if encoded(*found) != cursor or not all(-(2**62) < value < 2**62 for value in found):
        raise CursorError(f"cursor {cursor[:40]!r}: expected one that a page gave")
    return found


def _before(conn: sa.Connection, rows: sa.Table, since_ms: int) -> tuple[int, int]:
    """Give a position right before the first row that was recorded at `since_ms` or later."""
    if conn.dialect.name == "postgresql":
        return since_ms, -1
    low, high = 0, (conn.execute(sa.select(sa.func.max(rows.c.seq))).scalar() or 0) + 1
    while low < high:
        middle = (low + high) // 2
        at = conn.execute(
            sa.select(rows.c.recorded_at_ms).where(rows.c.seq >= middle).order_by(rows.c.seq).limit(1)
        ).scalar()
        if at is not None and at < since_ms:
            low = middle + 1
        else:
            high = middle
    return since_ms, low - 1


def _with_route(rows: sa.Table) -> tuple[sa.Select[Any], dict[str, sa.Column[Any]]]:
    routes = schema.routes
    parts = {name: routes.c[name] for name in ("provider", "model", "replica")}
    return sa.select(rows, *parts.values()).select_from(rows.outerjoin(routes)), {**dict(rows.c), **parts}
