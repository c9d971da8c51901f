"""Reading what is stored: query-only connections, one indexed query per question, never from the event loop."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from turnout.ledger import connection, schema

if TYPE_CHECKING:
    from pathlib import Path

CALLS_MAX = 1_000
QUERY_LIMIT_S = 10.0
# SQLite asks this often, in steps of its virtual machine, whether to go on: about every millisecond.
_STEPS_PER_CHECK = 100_000

Record = dict[str, Any]


class Reader:
    """Answers questions about stored calls. Safe in several threads; each question uses a connection of its own.

    Every method raises sqlalchemy.exc.DBAPIError when the database cannot answer (or takes over 10 s).
    """

    def __init__(self, path: Path) -> None:
        """Read the database at `path`; nothing is opened before the first question."""
        self._engine = connection.reading_engine(path)

    def recent_calls(self, limit: int = 100) -> list[Record]:
        """Give the newest calls by end, newest first; at most 1,000."""
        calls = schema.calls
        newest = sa.select(calls).order_by(calls.c.ended_at_ms.desc(), calls.c.seq.desc())
        return self._rows(newest.limit(max(0, min(limit, CALLS_MAX))))

    def call(self, call_id: str) -> Record | None:
        """Give one call with its attempts, in order and with the parts of their routes, or None."""
        calls, attempts, routes = schema.calls, schema.attempts, schema.routes
        parts = (routes.c.provider, routes.c.model, routes.c.replica)
        one = sa.select(calls, *parts).select_from(calls.outerjoin(routes)).where(calls.c.call_id == call_id)
        found = self._rows(one)
        if not found:
            return None
        legs = (
            sa.select(attempts, *parts)
            .select_from(attempts.outerjoin(routes))
            .where(attempts.c.call_id == call_id)
            .order_by(attempts.c.attempt_no, attempts.c.seq)
        )
        return {**found[0], "attempts": self._rows(legs)}

    def decision(self, call_id: str) -> Record | None:
        """Give the stored explanation of a call, or None."""
        table = schema.decisions
        found = self._rows(sa.select(table.c.json).where(table.c.call_id == call_id))
        return msgspec.json.decode(found[0]["json"], type=dict) if found else None

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def _rows(self, query: sa.Select[Any]) -> list[Record]:
        with self._engine.connect() as conn:
            driver = conn.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection), "the reading engine makes these"
            deadline = time.monotonic() + QUERY_LIMIT_S
            driver.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_PER_CHECK)
            return [dict(row) for row in conn.execute(query).mappings()]
