"""The schema of a PostgreSQL ledger: changed by a command only, under a lock that every router's command takes."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from turnout.ledger import connection, upgrade
from turnout.ledger.sink import LedgerRefusedError

# Any constant serves, as long as every version uses the same.
_LOCK_ID: Final = 0x7475726E6F7574
_COMMAND: Final = "turnout ledger upgrade"


def revision(url: str, *, connect_timeout_s: int = 5) -> str | None:
    """Read the schema's revision; None while there is none.

    Raises:
        sqlalchemy.exc.DBAPIError: the server does not answer.
    """
    engine = connection.postgres_engine(url, connect_timeout_s=connect_timeout_s)
    try:
        with engine.connect() as conn:
            return _revision(conn)
    finally:
        engine.dispose()


def check(url: str, *, connect_timeout_s: int = 5) -> None:
    """Make sure that this code and the schema fit.

    Raises:
        LedgerRefusedError: the schema is older or newer than this code.
        sqlalchemy.exc.DBAPIError: the server does not answer.
    """
    found = revision(url, connect_timeout_s=connect_timeout_s)
    if found is None or found in upgrade.REVISIONS[:-1]:
        msg = f"ledger: schema revision {found or 'none'}, this version needs {upgrade.HEAD!r}; run: {_COMMAND}"
        raise LedgerRefusedError(msg)
    _refuse_newer(found)


def run(url: str) -> str | None:
    """Bring the schema to the newest revision; return the one before.

    Raises:
        LedgerRefusedError: the schema is newer than this code.
        sqlalchemy.exc.DBAPIError: the server does not answer or refuses.
    """
    # Alembic costs 12 MB that a check does not pay.
    from alembic import command
    from alembic.config import Config

    engine = connection.postgres_engine(url, "-c statement_timeout=0 -c lock_timeout=60s")
    config = Config()
    config.set_main_option("script_location", upgrade.MIGRATIONS)
    try:
        with engine.connect() as conn, conn.begin():
            conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_ID)))
            before = _revision(conn)
            _refuse_newer(before)
            config.attributes["connection"] = conn
            command.upgrade(config, "head")
            return before
    finally:
        engine.dispose()


def _revision(conn: sa.Connection) -> str | None:
    if not sa.inspect(conn).has_table("alembic_version"):
        return None
    found: str | None = conn.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _refuse_newer(found: str | None) -> None:
    if found is not None and found not in upgrade.REVISIONS:
        msg = f"ledger: schema revision {found!r}, this version knows {upgrade.HEAD!r} and older; start a newer Turnout"
        raise LedgerRefusedError(msg)
