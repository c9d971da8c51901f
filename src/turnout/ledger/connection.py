"""How databases are opened: writing connections with the settings of ledger §4, any number of query-only readers."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from turnout.ledger import upgrade
from turnout.ledger.sink import LedgerRefusedError

if TYPE_CHECKING:
    from pathlib import Path

BUSY_TIMEOUT_MS: Final = 5_000
# A log that grew in a long transaction is cut back to this size by the next checkpoint.
_WAL_LIMIT_BYTES: Final = 67_108_864
_SQLITE_MIN: Final = (3, 35, 0)

# auto_vacuum must precede the first table and WAL mode: later it would need a full VACUUM.
_WRITER_PRAGMAS: Final = (
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    # Statement journals in a file cost some sixteen small writes per call; they are scratch, and the WAL is the truth.
    "PRAGMA temp_store = MEMORY",
    f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}",
)


def writing_engine(
    path: Path, *, begin: str = "BEGIN IMMEDIATE", busy_timeout_s: float = BUSY_TIMEOUT_MS / 1000
) -> sa.Engine:
    """Give an engine whose every connection may write and starts its transactions with `begin`."""
    if sqlite3.sqlite_version_info < _SQLITE_MIN:
        msg = f"SQLite {sqlite3.sqlite_version} is too old: expected at least 3.35"
        raise LedgerRefusedError(msg)

    def connect() -> sqlite3.Connection:
        # The driver's own transaction handling is off: it would begin late, after the first read of a transaction.
        conn = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None)
        try:
            for pragma in _WRITER_PRAGMAS:
                conn.execute(pragma).fetchall()
        except sqlite3.Error:
            conn.close()
            raise
        return conn

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=NullPool)

    def on_begin(conn: sa.Connection) -> None:
        conn.exec_driver_sql(begin)

    sa.event.listen(engine, "begin", on_begin)
    return engine


def reading_engine(path: Path) -> sa.Engine:
    """Give an engine whose connections can neither write nor checkpoint."""

    def connect() -> sqlite3.Connection:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        conn = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None)
        conn.execute("PRAGMA query_only = ON")
        return conn

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=NullPool)

    def on_begin(conn: sa.Connection) -> None:
        # Several reads of one transaction must see the same rows; the driver alone would give each its own.
        conn.exec_driver_sql("BEGIN DEFERRED")

    sa.event.listen(engine, "begin", on_begin)
    return engine


def writing(url: str) -> sa.Engine:
    """Give an engine for changes to the database of a ledger address, beside no other writer on SQLite."""
    return writing_engine(upgrade.path_of(url)) if upgrade.is_file(url) else postgres_engine(url)


def reading(url: str) -> sa.Engine:
    """Give an engine for queries on the database of a ledger address."""
    if url.startswith("sqlite"):
        return reading_engine(upgrade.path_of(url))
    return postgres_engine(
        url, r"-c default_transaction_read_only=on -c default_transaction_isolation=repeatable\ read"
    )


def postgres_engine(url: str, settings: str = "", *, connect_timeout_s: int = 5) -> sa.Engine:
    """Give an engine with the limits of ledger §4: 10 s per statement, 4 connections."""
    given = sa.make_url(url).set(drivername="postgresql+psycopg")
    options = f"-c statement_timeout=10s -c idle_in_transaction_session_timeout=30s -c lock_timeout=5s {settings}"
    return sa.create_engine(
        given,
        pool_size=4,
        max_overflow=0,
        pool_pre_ping=False,
        connect_args={
            "connect_timeout": connect_timeout_s,
            "options": options,
            "application_name": "turnout",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
    )


def inserted_columns(table: sa.Table) -> list[str]:
    """Name the columns that an insertion gives: all but an identity."""
    identity = table.autoincrement_column
    return [column.name for column in table.columns if column is not identity]
