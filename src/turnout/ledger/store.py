"""The one writing connection to SQLite: a batch is one transaction, stored whole or not at all.

Statements are compiled once from the SQLAlchemy tables and run through `exec_driver_sql` with plain tuples:
SQLAlchemy's own parameter processing would add a quarter to the cost of a call (`benchmarks/bench_ledger.py`).
"""

from __future__ import annotations

import contextlib
import sqlite3
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from turnout.ledger import connection, retention, rows, schema
from turnout.ledger.sink import SinkDownError, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from turnout.core.facts import CallFact, RouteKey

# Each driver call hands the interpreter lock over twice, so one statement for many rows is cheaper than `executemany`;
# but its parameters are bound while the lock is held. 16 rows hold it for some 60 µs, which no request notices.
_GROUP = 16
_ROUTES_MAX = 65_536
_KNOWN = "SELECT call_id FROM calls WHERE call_id IN (SELECT value FROM json_each(?))"


class Store:
    """Writes batches, prunes and checkpoints. Owned by one thread; opens its connection on first use."""

    def __init__(
        self,
        path: Path,
        *,
        router_id: str,
        clock_ms: Callable[[], int],
        retention_days: int,
        decisions_days: int,
        busy_timeout_s: float = connection.BUSY_TIMEOUT_MS / 1000,
    ) -> None:
        """Describe the database at `path`, which `upgrade.prepare` has brought to the newest schema."""
        self._engine = connection.writing_engine(path, busy_timeout_s=busy_timeout_s)
        self._connection: sa.Connection | None = None
        self._router_id = router_id
        self._writer_id = 0
        self._clock_ms = clock_ms
        self._routes: dict[RouteKey | None, int | None] = {None: None}
        self._ages = retention.Ages(calls_days=retention_days, decisions_days=decisions_days)
        self._insert_calls = _Insert(schema.calls)
        self._insert_attempts = _Insert(schema.attempts)
        self._insert_decisions = _Insert(schema.decisions)
        self._insert_route = _single(schema.routes)
        self._upsert_bucket = _bucket_upsert()

    def write(self, facts: Sequence[CallFact]) -> Written:
        """Store all facts in one transaction; facts that no table can hold are counted and left out.

        Raises:
            SinkDownError: the database cannot take the batch now; nothing of it is stored.
        """
        try:
            return self._transaction(facts)
        except sa.exc.DBAPIError as error:
            if not isinstance(error.orig, sqlite3.Error) or _is_environment(error.orig):
                raise self._down(error) from error
        except sa.exc.SQLAlchemyError as error:
            raise self._down(error) from error
        except (OverflowError, ValueError, TypeError):
            # A value that no column can hold (an integer beyond int64, text that is not UTF-8): isolated below.
            self._routes = {None: None}
        self._routes = {None: None}
        if len(facts) == 1:
            return Written(invalid=1)
        middle = len(facts) // 2
        return self.write(facts[:middle]).plus(self.write(facts[middle:]))

    def prune(self) -> bool:
        """Delete one chunk of what is too old; True while there is more.

        Raises:
            SinkDownError: the database cannot be changed now.
        """
        try:
            return retention.prune(self._open(), self._clock_ms(), self._ages)
        except sa.exc.SQLAlchemyError as error:
            raise self._down(error) from error

    def close(self) -> None:
        """Move the write-ahead log into the database and let go of it; never raises."""
        if self._connection is not None:
            # On failure the log stays beside the database and is read by whoever opens it next.
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                self._connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        self._reset()
        self._engine.dispose()

    def _transaction(self, facts: Sequence[CallFact]) -> Written:
        conn = self._open()
        with conn.begin():
            stamp = rows.Stamp(self._router_id, self._writer_id, self._clock_ms())
            by_id = {fact.call_id: fact for fact in reversed(facts)}
            ids = msgspec.json.encode(list(by_id)).decode()
            for (call_id,) in conn.exec_driver_sql(_KNOWN, (ids,)).fetchall():
                del by_id[call_id]
            fresh = list(reversed(by_id.values()))
            routes_n = self._learn_routes(conn, fresh)
            batch = rows.batch(fresh, stamp, self._routes)
            self._insert_calls.run(conn, batch.calls)
            self._insert_attempts.run(conn, batch.attempts)
            self._insert_decisions.run(conn, batch.decisions)
            if batch.buckets:
                conn.exec_driver_sql(self._upsert_bucket, batch.buckets)
        return Written(
            calls=len(batch.calls),
            attempts=len(batch.attempts),
            routes=routes_n,
            decisions=len(batch.decisions),
            decisions_too_large=batch.decisions_too_large,
            duplicates=len(facts) - len(fresh),
            commits=1,
        )

    def _learn_routes(self, conn: sa.Connection, facts: Sequence[CallFact]) -> int:
        if len(self._routes) > _ROUTES_MAX:
            self._routes = {None: None}
        table = schema.routes.c
        inserted = 0
        for key in sorted(rows.route_keys(facts) - self._routes.keys(), key=msgspec.structs.astuple):
            parts = (key.provider, key.model, key.replica)
            inserted += conn.exec_driver_sql(self._insert_route, parts).rowcount
            found = sa.select(table.route_id).where(
                table.provider == key.provider, table.model == key.model, table.replica == key.replica
            )
            self._routes[key] = conn.execute(found).scalar_one()
        return inserted

    def _open(self) -> sa.Connection:
        if self._connection is None:
            conn = self._connection = self._engine.connect()
            if not self._writer_id:
                with conn.begin():
                    row = {"router_id": self._router_id, "started_at_ms": self._clock_ms()}
                    result = conn.execute(sa.insert(schema.writers).values(row).returning(schema.writers.c.writer_id))
                    self._writer_id = result.scalar_one()
        return self._connection

    def _down(self, error: sa.exc.SQLAlchemyError) -> SinkDownError:
        # After an fsync error the state of the open log is unknown, so every failure starts over with a new
        # connection and the same batch.
        self._reset()
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        return SinkDownError(_kind(cause), str(cause))

    def _reset(self) -> None:
        self._routes = {None: None}
        conn, self._connection = self._connection, None
        if conn is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                conn.close()


class _Insert:
    """`INSERT … VALUES … ON CONFLICT DO NOTHING` in groups of 16, 8, 4, … rows."""

    def __init__(self, table: sa.Table) -> None:
        head, values, tail = _single(table).partition("VALUES ")
        group, conflict, rest = tail.partition(" ON CONFLICT")
        self._sql = {size: f"{head}{values}{', '.join([group] * size)}{conflict}{rest}" for size in (16, 8, 4, 2, 1)}

    def run(self, conn: sa.Connection, new: list[rows.Row]) -> None:
        start, left = 0, len(new)
        while left:
            size = _GROUP if left >= _GROUP else 1 << (left.bit_length() - 1)
            conn.exec_driver_sql(self._sql[size], tuple(chain.from_iterable(new[start : start + size])))
            start, left = start + size, left - size


def _single(table: sa.Table) -> str:
    """Compile the insertion of one row; its parameters are the columns in the table's order, without the identity."""
    identity = table.autoincrement_column
    values: dict[str, Any] = {
        column.name: sa.bindparam(f"p_{column.name}") for column in table.columns if column is not identity
    }
    return str(sqlite.insert(table).values(values).on_conflict_do_nothing().compile(dialect=sqlite.dialect()))


def _bucket_upsert() -> str:
    table = schema.attempt_buckets
    insert = sqlite.insert(table).values({c.name: sa.bindparam(f"p_{c.name}") for c in table.columns})
    sums = {c.name: c + insert.excluded[c.name] for c in table.columns if not c.primary_key}
    upsert = insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=sums)
    return str(upsert.compile(dialect=sqlite.dialect()))


def _is_environment(error: sqlite3.Error) -> bool:
    """Tell a database in trouble from a row it refuses."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


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
