"""How databases are opened through SQLAlchemy: for servers, for migrations, and for pages and commands of people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from turnout.ledger import files, upgrade

if TYPE_CHECKING:
    from pathlib import Path


def writing_engine(
    path: Path, *, begin: str = "BEGIN IMMEDIATE", busy_timeout_s: float = files.BUSY_TIMEOUT_MS / 1000
) -> sa.Engine:
    """Give an engine whose every connection may write and starts its transactions with `begin`."""
    files.check_version()
    engine = sa.create_engine(
        "sqlite://", creator=lambda: files.open_writing(path, busy_timeout_s=busy_timeout_s), poolclass=NullPool
    )

    def on_begin(conn: sa.Connection) -> None:
        conn.exec_driver_sql(begin)

    sa.event.listen(engine, "begin", on_begin)
    return engine


def reading_engine(path: Path) -> sa.Engine:
    """Give an engine whose connections can neither write nor checkpoint."""
    engine = sa.create_engine("sqlite://", creator=lambda: files.open_reading(path), poolclass=NullPool)

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
