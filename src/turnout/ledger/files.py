"""How the file of a SQLite ledger is opened: one writer with the settings of ledger §4, any number of readers.

With the driver alone. Who serves needs no more, and SQLAlchemy would take 25 MB (docs/adr/0011).
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

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


def check_version() -> None:
    """See that the library is new enough.

    Raises:
        LedgerRefusedError: it is not.
    """
    if sqlite3.sqlite_version_info < _SQLITE_MIN:
        msg = f"SQLite {sqlite3.sqlite_version} is too old: expected at least 3.35"
        raise LedgerRefusedError(msg)


def open_writing(path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_MS / 1000) -> sqlite3.Connection:
    """Open for changes, and make the file if there is none; transactions are begun by hand."""
    # The driver's own transaction handling is off: it would begin late, after the first read of a transaction.
    conn = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None)
    try:
        for pragma in _WRITER_PRAGMAS:
            conn.execute(pragma).fetchall()
    except sqlite3.Error:
        conn.close()
        raise
    return conn


def open_reading(path: Path) -> sqlite3.Connection:
    """Open for queries: the connection can neither write nor checkpoint."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    conn = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None)
    conn.execute("PRAGMA query_only = ON")
    return conn
