"""The one writing connection to SQLite.

Statements run through the driver with plain tuples, without SQLAlchemy (docs/adr/0011). Two thirds of the
cost of a row are its parameters, 0.15 µs each and bound with the interpreter's lock held, against 5 µs for the call and
its attempt inside SQLite; so what all rows of a chunk share is one parameter (`benchmarks/bench_ledger.py`).
"""

from __future__ import annotations

import contextlib
import sqlite3
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from turnout.ledger import files, queries, rows
from turnout.ledger.retention import Ages
from turnout.ledger.store import AlreadyStoredError, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from turnout.core.facts import RouteKey

# Parameters are bound while the lock is held, some 60 µs for so many rows, which no request notices.
_GROUP = 32
# Smaller chunks are inserted row by row, and say nothing about what rows share.
_SHARED_MIN = 8
# So often what rows share is found anew; in between it only shrinks, so that few statements are ever made.
_RENEWED_EVERY = 512
_STATEMENTS_MAX = 64
_KNOWN = "SELECT call_id FROM calls WHERE call_id IN (SELECT value FROM json_each(?))"
_KNOWN_ATTEMPTS = "SELECT call_id, attempt_no, phase FROM attempts WHERE call_id IN (SELECT value FROM json_each(?))"
_ROUTE = "SELECT route_id FROM routes WHERE provider = ? AND model = ? AND replica = ?"
_NEW_ROUTE = "INSERT INTO routes (provider, model, replica) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_NEW_WRITER = "INSERT INTO writers (router_id, started_at_ms) VALUES (:router, :at) RETURNING writer_id"
_LATEST = "SELECT recorded_at_ms FROM calls ORDER BY seq DESC LIMIT 1"


def open_store(
    path: Path,
    *,
    router_id: str,
    clock_ms: Callable[[], int],
    retention_days: int,
    decisions_days: int,
    hourly_days: int = 400,
    busy_timeout_s: float = files.BUSY_TIMEOUT_MS / 1000,
) -> Store:
    """Describe the store over the database at `path`."""
    database = SqliteDatabase(path, router_id=router_id, clock_ms=clock_ms, busy_timeout_s=busy_timeout_s)
    ages = Ages(calls_days=retention_days, decisions_days=decisions_days, hourly_days=hourly_days)
    return Store(database, router_id=router_id, clock_ms=clock_ms, ages=ages, finish=database.checkpoint)


class SqliteDatabase:
    """A `store.Database`, and its own `store.Transaction`: there is one connection."""

    chunk = _GROUP

    def __init__(self, path: Path, *, router_id: str, clock_ms: Callable[[], int], busy_timeout_s: float) -> None:
        """Describe the database at `path`."""
        files.check_version()
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._connection: sqlite3.Connection | None = None
        self._router_id = router_id
        self._clock_ms = clock_ms
        self._inserts = {table: _upsert(table) for table in rows.INSERTED}
        self._bulks = {table: _Bulk(table) for table in ("calls", "attempts")}

    def connection(self) -> sqlite3.Connection:
        """Open the connection if need be."""
        if self._connection is None:
            self._connection = files.open_writing(self._path, busy_timeout_s=self._busy_timeout_s)
        return self._connection

    def writer(self) -> tuple[int, int]:
        """Take a writer's id, and read the latest stamp."""
        conn = self.connection()
        with queries.transaction(conn):
            writer_id: int = queries.value(conn, _NEW_WRITER, router=self._router_id, at=self._clock_ms())
            return writer_id, queries.value(conn, _LATEST) or 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator[SqliteDatabase]:
        """Hold the write lock."""
        with queries.transaction(self.connection()):
            yield self

    def trouble(self, error: Exception) -> str | None:
        """Tell a database in trouble from a row it refuses."""
        if isinstance(error, OverflowError | ValueError | TypeError):
            return None
        if isinstance(error, sqlite3.Error):
            environment = isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError
            return _kind(error) if environment else None
        return "other"

    def reset(self) -> None:
        """Close the connection."""
        conn, self._connection = self._connection, None
        if conn is not None:
            with contextlib.suppress(sqlite3.Error):
                conn.close()

    def checkpoint(self) -> None:
        """Move the write-ahead log into the database, as far as possible."""
        if self._connection is not None:
            # On failure the log stays beside the database and is read by whoever opens it next.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def now_ms(self) -> int:
        """Read our own clock: nobody else writes."""
        return self._clock_ms()

    def known_calls(self, call_ids: list[str]) -> list[str]:
        """Look the ids up."""
        found = self.connection().execute(_KNOWN, (msgspec.json.encode(call_ids).decode(),))
        return [call_id for (call_id,) in found.fetchall()]

    def known_attempts(self, call_ids: list[str]) -> list[rows.AttemptId]:
        """Look the attempts of these calls up."""
        found = self.connection().execute(_KNOWN_ATTEMPTS, (msgspec.json.encode(call_ids).decode(),))
        return [(call_id, number, phase) for call_id, number, phase in found.fetchall()]

    def route_id(self, key: RouteKey) -> tuple[int, bool]:
        """Insert the route unless it is there."""
        parts = (key.provider, key.model, key.replica)
        conn = self.connection()
        made = conn.execute(_NEW_ROUTE, parts).rowcount
        return conn.execute(_ROUTE, parts).fetchone()[0], bool(made)

    def insert(self, table: str, new: list[rows.Row]) -> None:
        """Insert rows; sums are added to those that are there."""
        if new:
            self.connection().executemany(self._inserts[table], new)

    def insert_columns(self, table: str, new: rows.Columns) -> None:
        """Insert calls or attempts, or raise AlreadyStoredError."""
        self._bulks[table].run(self.connection(), new)


class _Bulk:
    """Insertion by columns, up to 32 rows a statement; columns in which all rows agree are one parameter each."""

    def __init__(self, table: str) -> None:
        self._single = _single(table)
        self._head = self._single.partition("VALUES ")[0]
        self._shared: tuple[bool, ...] = ()
        self._runs = 0
        self._statements: dict[tuple[tuple[bool, ...], int], str] = {}

    def run(self, conn: sqlite3.Connection, columns: rows.Columns) -> None:
        left = len(columns[0])
        if left < _SHARED_MIN:
            self._insert(conn, self._single, tuple(zip(*columns, strict=True)))
            return
        shared = self._agreeing(columns, left)
        once = [column[0] for column, same in zip(columns, shared, strict=True) if same]
        each = [column for column, same in zip(columns, shared, strict=True) if not same]
        start = 0
        while left:
            size = _GROUP if left >= _GROUP else 1 << (left.bit_length() - 1)
            values = (*once, *chain.from_iterable([column[start : start + size] for column in each]))
            if conn.execute(self._statement(shared, size), values).rowcount != size:
                raise AlreadyStoredError
            start, left = start + size, left - size

    def _insert(self, conn: sqlite3.Connection, sql: str, new: tuple[rows.Row, ...]) -> None:
        if conn.executemany(sql, new).rowcount != len(new):
            raise AlreadyStoredError

    def _agreeing(self, columns: rows.Columns, n: int) -> tuple[bool, ...]:
        now = tuple([column.count(column[0]) == n for column in columns])
        if self._runs % _RENEWED_EVERY == 0:
            self._shared = now
        elif self._shared != now:
            self._shared = tuple([a and b for a, b in zip(self._shared, now, strict=True)])
        self._runs += 1
        return self._shared

    def _statement(self, shared: tuple[bool, ...], size: int) -> str:
        """Number the parameters: first the columns that rows share, then one column after the other."""
        found = self._statements.get((shared, size))
        if found is None:
            once, each = iter(range(1, sum(shared) + 1)), iter(range(len(shared)))
            first = [next(once) if same else sum(shared) + 1 + next(each) * size for same in shared]
            lines = (
                ", ".join([f"?{at if same else at + row}" for at, same in zip(first, shared, strict=True)])
                for row in range(size)
            )
            found = f"{self._head}VALUES {', '.join([f'({line})' for line in lines])} ON CONFLICT DO NOTHING"
            if len(self._statements) >= _STATEMENTS_MAX:
                self._statements.clear()
            self._statements[shared, size] = found
        return found


def _single(table: str) -> str:
    """Write the insertion of one row; its parameters are the columns in the table's order, without the identity."""
    return f"{_insertion(table)} ON CONFLICT DO NOTHING"


def _upsert(table: str) -> str:
    """Write the insertion of one row, or the addition where the table holds sums."""
    return f"{_insertion(table)}{rows.addition(table)}" if table in rows.SUM_KEYS else _single(table)


def _insertion(table: str) -> str:
    columns = rows.inserted_columns(table)
    # Names of our own schema only.
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608


_KINDS = {
    "SQLITE_BUSY": "locked",
    "SQLITE_LOCKED": "locked",
    "SQLITE_FULL": "full",
    "SQLITE_READONLY": "read_only",
    "SQLITE_IOERR": "io",
    "SQLITE_CORRUPT": "corrupt",
    "SQLITE_NOTADB": "corrupt",
    "SQLITE_CANTOPEN": "unreachable",
}


def _kind(error: BaseException | None) -> str:
    name: str = getattr(error, "sqlite_errorname", "")
    return _KINDS.get("_".join(name.split("_")[:2]), "other")
