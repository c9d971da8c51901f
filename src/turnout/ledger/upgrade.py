"""Bring the database file to the newest schema before anything else opens it, or say why the process must not start.

A file from an older release is copied first; a file that is no database is moved aside so that serving starts.
`check` needs only the standard library, so it can run before the first request without loading SQLAlchemy.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from turnout.ledger.sink import LedgerRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

# Every revision, oldest first. A test compares it with the migrations.
REVISIONS: Final = ("0001", "0002", "0003", "0004")
HEAD: Final = REVISIONS[-1]
MIGRATIONS: Final = str(Path(__file__).parent / "migrations")
_SCHEME: Final = "sqlite:///"
_LOCK_WAIT_S: Final = 60.0
_VERSION_TABLE: Final = (
    "CREATE TABLE alembic_version ( version_num VARCHAR(32) NOT NULL,"
    " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num) )"
)


class OnEvent(Protocol):
    """Receives what an operator should know: a name and its fields. Must not raise."""

    def __call__(self, name: str, /, **fields: object) -> None:
        """Take one event."""


class Prepare(Protocol):
    """Brings a file to the newest schema, as `prepare` does."""

    def __call__(self, path: Path, *, clock_ms: Callable[[], int], on_event: OnEvent) -> None:
        """Do it, or raise."""


class State(msgspec.Struct, frozen=True):
    """What stands at the path: nothing yet, a database at a revision (None: not ours), or no database at all."""

    exists: bool = False
    revision: str | None = None
    corrupt: str = ""


def path_of(url: str) -> Path:
    """Give the file of a ledger address.

    Raises:
        LedgerRefusedError: the address is not `sqlite:///<file>`.
    """
    name = url.removeprefix(_SCHEME)
    if name == url or not name or name == ":memory:":
        msg = f"ledger.url: {_without_password(url)!r}, expected sqlite:///<file> or postgresql://…"
        raise LedgerRefusedError(msg)
    return Path(name)


def is_file(url: str) -> bool:
    """Tell whether a ledger address names a file; the other kind names a PostgreSQL server.

    Raises:
        LedgerRefusedError: it names neither.
    """
    if url.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
        return False
    path_of(url)
    return True


def base_of(url: str, spool: str = "") -> Path:
    """Give the path that the names of spool and slot files begin with."""
    if spool:
        return Path(spool)
    return path_of(url) if is_file(url) else Path("turnout-ledger")


def check(path: Path) -> State:
    """Read what stands at `path` without changing it.

    Raises:
        LedgerRefusedError: its schema is newer than this code.
    """
    if not path.is_file() or not path.stat().st_size:
        return State()
    try:
        state = _read(path)
    except sqlite3.OperationalError:
        return State()  # locked or unreadable at the moment: the writer retries, and reports it
    except sqlite3.DatabaseError as error:
        return State(exists=True, corrupt=str(error))
    if state.revision is not None and state.revision not in REVISIONS:
        msg = (
            f"{path}: schema revision {state.revision!r}, this version knows {HEAD!r} and older; start a newer Turnout"
        )
        raise LedgerRefusedError(msg)
    return state


def prepare(path: Path, *, clock_ms: Callable[[], int], on_event: OnEvent) -> None:
    """Make `path` a database of the newest schema.

    Raises:
        LedgerRefusedError: its schema is newer than this code.
        Exception: the file cannot be created, copied or changed at the moment.
    """
    state = check(path)
    if state.corrupt:
        aside = _move_aside(path, clock_ms())
        on_event("ledger_corrupt", path=str(path), moved_to=str(aside), error=state.corrupt)
        state = State()
    if state.revision == HEAD:
        return
    if state.exists:
        copy = _copy(path, state.revision or "none")
        on_event("ledger_copied", path=str(path), copy=str(copy), revision=state.revision or "")
        migrate(path)
    else:
        _create(path)
    on_event("ledger_upgraded", path=str(path), before=state.revision or "", revision=HEAD)


def migrate(path: Path) -> None:
    """Run every revision that a file lacks."""
    # Alembic costs 12 MB and 0.15 s that a normal start does not pay.
    from alembic import command
    from alembic.config import Config

    from turnout.ledger import connection

    engine = connection.writing_engine(path, begin="BEGIN EXCLUSIVE", busy_timeout_s=_LOCK_WAIT_S)
    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    try:
        # Revisions and version number change in one exclusive transaction; a second process that starts at the
        # same time waits for it and then finds nothing to do.
        with engine.connect() as conn, conn.begin():
            config.attributes["connection"] = conn
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def _read(path: Path) -> State:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1.0)) as conn:
        tables = {name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "alembic_version" not in tables:
            # A creation that was interrupted (full disk, kill) leaves a database without tables: nothing to keep.
            return State(exists=bool(tables))
        row = conn.execute("SELECT version_num FROM alembic_version").fetchone()
        return State(exists=True, revision=str(row[0]) if row else None)


def _move_aside(path: Path, now_ms: int) -> Path:
    aside = path.with_name(f"{path.name}.corrupt-{now_ms}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _copy(path: Path, revision: str) -> Path:
    """Copy through SQLite, which includes what only the write-ahead log holds yet."""
    copy = path.with_name(f"{path.name}.before-{HEAD}-was-{revision}")
    unfinished = copy.with_name(f"{copy.name}.tmp-{os.getpid()}")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(unfinished)) as target:
        source.backup(target)
    unfinished.replace(copy)
    return copy


def _create(path: Path) -> None:
    """Make the tables of the newest schema at once: a test holds that the migrations lead to the same."""
    from turnout.ledger import connection, schema

    engine = connection.writing_engine(path, begin="BEGIN EXCLUSIVE", busy_timeout_s=_LOCK_WAIT_S)
    try:
        with engine.connect() as conn, conn.begin():
            # A second process that starts at the same time waits for the lock and then finds nothing to do.
            if not conn.exec_driver_sql("SELECT count(*) FROM sqlite_master WHERE type = 'table'").scalar_one():
                schema.metadata.create_all(conn, checkfirst=False)
                conn.exec_driver_sql(_VERSION_TABLE)
                conn.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (HEAD,))
    finally:
        engine.dispose()


def _without_password(url: str) -> str:
    head, at, host = url.rpartition("@")
    return f"{head.partition('://')[0]}://…@{host}" if at else url
