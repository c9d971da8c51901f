"""How statements reach a database: SQLite through its driver, servers through SQLAlchemy, both in the same words.

Statements are text with parameters named `:name`, which both understand. Serving from a file so needs no SQLAlchemy.
"""

from __future__ import annotations

import contextlib
import sqlite3
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from turnout.ledger import files, upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import sqlalchemy as sa

    Connection = sqlite3.Connection | sa.Connection

_STATEMENTS_MAX: Final = 256


def rows(conn: Connection, sql: str, **parameters: Any) -> Sequence[Any]:
    """Give every row, as tuples."""
    if isinstance(conn, sqlite3.Connection):
        return conn.execute(sql, parameters).fetchall()
    return conn.execute(_text(sql), parameters).all()


def first(conn: Connection, sql: str, **parameters: Any) -> Any:
    """Give the first row; None when there is none."""
    return next(iter(rows(conn, sql, **parameters)), None)


def value(conn: Connection, sql: str, **parameters: Any) -> Any:
    """Give the first value of the first row; None when there is no row."""
    found = first(conn, sql, **parameters)
    return None if found is None else found[0]


def change(conn: Connection, sql: str, **parameters: Any) -> int:
    """Run a change, and tell how many rows it met."""
    if isinstance(conn, sqlite3.Connection):
        return conn.execute(sql, parameters).rowcount
    return conn.execute(_text(sql), parameters).rowcount


def insert(conn: Connection, table: str, new: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that all name the same columns."""
    names = list(new[0])
    sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join([f':{name}' for name in names])})"  # noqa: S608 - our names
    if isinstance(conn, sqlite3.Connection):
        conn.executemany(sql, new)
    else:
        conn.execute(_text(sql), new)


def on_server(conn: Connection) -> bool:
    """Tell PostgreSQL from SQLite."""
    return not isinstance(conn, sqlite3.Connection) and conn.dialect.name == "postgresql"


def driver_of(conn: Connection) -> sqlite3.Connection | None:
    """Give the driver's connection to a file; None for a server."""
    if isinstance(conn, sqlite3.Connection):
        return conn
    driver = conn.connection.driver_connection
    return driver if isinstance(driver, sqlite3.Connection) else None


@contextlib.contextmanager
def transaction(conn: Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """Commit at the end, roll back on an exception; `begin` is for files, a server has its own."""
    if not isinstance(conn, sqlite3.Connection):
        with conn.begin():
            yield
        return
    conn.execute(begin)
    try:
        yield
        conn.execute("COMMIT")
    except BaseException:
        # Some failures have rolled it back already; and what keeps it from that ends with the connection.
        if conn.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                conn.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def reading(url: str, engine: sa.Engine | None = None) -> Iterator[Connection]:
    """Open the database of an address for queries, all in one transaction; a server through `engine` if there is one.

    Raises:
        sqlite3.Error, sqlalchemy.exc.SQLAlchemyError: it does not answer (`errors`).
    """
    if upgrade.is_file(url):
        # Several reads of one transaction must see the same rows; the driver alone would give each its own.
        with contextlib.closing(files.open_reading(upgrade.path_of(url))) as file, transaction(file, "BEGIN DEFERRED"):
            yield file
        return
    from turnout.ledger import connection

    own = engine or connection.reading(url)
    try:
        with own.connect() as conn, conn.begin():
            yield conn
    finally:
        if engine is None:
            own.dispose()


@contextlib.contextmanager
def changing(url: str) -> Iterator[Connection]:
    """Open the database of an address for one transaction that changes it; raises as `reading`."""
    if upgrade.is_file(url):
        with contextlib.closing(files.open_writing(upgrade.path_of(url))) as file, transaction(file):
            yield file
        return
    from turnout.ledger import connection

    engine = connection.writing(url)
    try:
        with engine.begin() as conn:
            yield conn
    finally:
        engine.dispose()


def errors(url: str) -> tuple[type[Exception], ...]:
    """What is raised when the database of an address does not answer."""
    if upgrade.is_file(url):
        return (sqlite3.Error, OSError)
    from sqlalchemy.exc import SQLAlchemyError

    return (SQLAlchemyError, OSError)


@lru_cache(_STATEMENTS_MAX)
def _text(sql: str) -> sa.TextClause:
    import sqlalchemy as sa

    return sa.text(sql)
