"""The writing connection to PostgreSQL: COPY for rows, since it costs the server and us a fifth of single inserts.

COPY knows no ON CONFLICT: a row that is there already fails the transaction on its unique key, and the second try
leaves out what is stored.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from turnout.ledger import connection, rows, schema
from turnout.ledger.retention import Ages
from turnout.ledger.store import AlreadyStoredError, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from turnout.core.facts import RouteKey

_COPIED: Final = ("calls", "attempts", "decisions", "late_buckets")
_KNOWN = "SELECT call_id FROM calls WHERE call_id = ANY(%s)"
_KNOWN_ATTEMPTS = "SELECT call_id, attempt_no, phase FROM attempts WHERE call_id = ANY(%s)"
_ROUTE = "SELECT route_id FROM routes WHERE provider = %s AND model = %s AND replica = %s"
_NOW = "SELECT (extract(epoch FROM transaction_timestamp()) * 1000)::bigint"
_DIRTY = "INSERT INTO dirty_hours VALUES (%s) ON CONFLICT DO NOTHING"
# A row that the table refuses; everything else is the database in trouble.
_ROW_ERRORS = (psycopg.DataError, psycopg.IntegrityError, OverflowError, ValueError, TypeError)
_CONFLICTS = (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)


def open_store(
    url: str,
    *,
    router_id: str,
    clock_ms: Callable[[], int],
    retention_days: int,
    decisions_days: int,
    hourly_days: int = 400,
) -> Store:
    """Describe the store over the database at `url`."""
    database = PostgresDatabase(url, router_id=router_id, clock_ms=clock_ms)
    ages = Ages(calls_days=retention_days, decisions_days=decisions_days, hourly_days=hourly_days)
    return Store(database, router_id=router_id, clock_ms=clock_ms, ages=ages, finish=database.dispose)


class PostgresDatabase:
    """A `store.Database`, and its own `store.Transaction`: there is one writing connection."""

    chunk = 500

    def __init__(self, url: str, *, router_id: str, clock_ms: Callable[[], int]) -> None:
        """Describe the database at `url`."""
        self._engine = connection.postgres_engine(url)
        self._connection: sa.Connection | None = None
        self._router_id = router_id
        self._clock_ms = clock_ms
        self._copy = {table: _copy(table) for table in _COPIED}
        self._additions = {table: _array_upsert(schema.metadata.tables[table]) for table in rows.SUM_KEYS}

    def connection(self) -> sa.Connection:
        """Open the connection if need be."""
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def writer(self) -> tuple[int, int]:
        """Take a writer's id, and read the latest stamp."""
        conn = self.connection()
        with conn.begin():
            row = {"router_id": self._router_id, "started_at_ms": self._clock_ms()}
            result = conn.execute(sa.insert(schema.writers).values(row).returning(schema.writers.c.writer_id))
            return result.scalar_one(), 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator[PostgresDatabase]:
        """Begin on the writing connection."""
        with self.connection().begin():
            yield self

    def trouble(self, error: Exception) -> str | None:
        """Tell a database in trouble from a row it refuses."""
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if isinstance(cause, _CONFLICTS):
            return "locked"
        if isinstance(cause, _ROW_ERRORS):
            return None
        if isinstance(cause, psycopg.errors.DiskFull):
            return "full"
        if isinstance(cause, psycopg.errors.ReadOnlySqlTransaction):
            return "read_only"
        if isinstance(cause, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable):
            return "locked"
        return "unreachable" if isinstance(cause, psycopg.OperationalError) else "other"

    def reset(self) -> None:
        """Drop the connection; the pool forgets the others too, since the server may have gone."""
        conn, self._connection = self._connection, None
        if conn is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError, psycopg.Error):
                conn.invalidate()
            with contextlib.suppress(sa.exc.SQLAlchemyError, psycopg.Error):
                conn.close()

    def dispose(self) -> None:
        """Close every connection."""
        self.reset()
        self._engine.dispose()

    def now_ms(self) -> int:
        """Read the server's clock."""
        row = self._cursor().execute(_NOW).fetchone()
        assert row is not None, "it gives one row"
        return int(row[0])

    def known_calls(self, call_ids: list[str]) -> list[str]:
        """Look the ids up."""
        return [call_id for (call_id,) in self._cursor().execute(_KNOWN, (call_ids,)).fetchall()]

    def known_attempts(self, call_ids: list[str]) -> list[rows.AttemptId]:
        """Look the attempts of these calls up."""
        return self._cursor().execute(_KNOWN_ATTEMPTS, (call_ids,)).fetchall()

    def route_id(self, key: RouteKey) -> tuple[int, bool]:
        """Insert the route unless it is there."""
        parts = {"provider": key.provider, "model": key.model, "replica": key.replica}
        made = self.connection().execute(
            postgresql.insert(schema.routes).values(parts).on_conflict_do_nothing().returning(schema.routes.c.route_id)
        )
        found: int | None = made.scalar()
        if found is not None:
            return found, True
        row = self._cursor().execute(_ROUTE, tuple(parts.values())).fetchone()
        assert row is not None, "the insertion met a route that is there"
        return row[0], False

    def insert(self, table: str, new: list[rows.Row]) -> None:
        """Insert rows; sums are added to those that are there, so no key comes twice in one batch of them."""
        if not new:
            return
        if table in self._additions:
            self._cursor().execute(self._additions[table], [list(column) for column in zip(*new, strict=True)])
        elif table == "dirty_hours":
            self._cursor().executemany(_DIRTY, new)
        else:
            self._copy_rows(table, new)

    def insert_columns(self, table: str, new: rows.Columns) -> None:
        """Insert calls or attempts, or raise AlreadyStoredError."""
        try:
            self._copy_rows(table, zip(*new, strict=True))
        except psycopg.errors.UniqueViolation as error:
            raise AlreadyStoredError from error

    def _copy_rows(self, table: str, new: Iterable[rows.Row]) -> None:
        with self._cursor().copy(self._copy[table]) as copy:
            for row in new:
                copy.write_row(row)

    def _cursor(self) -> psycopg.Cursor[Any]:
        driver = self.connection().connection.driver_connection
        assert isinstance(driver, psycopg.Connection), "the engine makes these"
        return driver.cursor()


def _copy(table: str) -> str:
    """Write the COPY statement of a table."""
    return f"COPY {table} ({', '.join(rows.inserted_columns(table))}) FROM STDIN"


def _array_upsert(table: sa.Table) -> str:
    """Write the addition of many rows of sums as one statement over arrays, one per column."""
    dialect: Any = postgresql.dialect  # its stubs have no types
    types = [column.type.compile(dialect()) for column in table.columns]
    names = ", ".join([column.name for column in table.columns])
    arrays = ", ".join([f"%s::{kind}[]" for kind in types])
    # Names of our own schema only.
    return f"INSERT INTO {table.name} ({names}) SELECT * FROM unnest({arrays}){rows.addition(table.name)}"  # noqa: S608
