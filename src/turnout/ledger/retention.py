"""What is too old goes in small transactions, so that a batch never waits long behind a deletion (ledger §4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import sqlalchemy as sa

from turnout.ledger import schema

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_ROWS: Final = 5_000
BUCKETS_MS: Final = 48 * 3_600_000
_DAY_MS: Final = 86_400_000
_VACUUM_PAGES: Final = 1_000
_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID_TIME_CHARS: Final = 10


class Ages(msgspec.Struct, frozen=True, kw_only=True):
    """Days that rows are kept."""

    calls_days: int
    decisions_days: int
    hourly_days: int = 400


def prune(conn: sa.Connection, now_ms: int, ages: Ages) -> bool:
    """Delete at most one chunk; True while a full chunk was found, so more may wait."""
    for statement in _chunks(now_ms, ages):
        with conn.begin():
            deleted = conn.execute(statement).rowcount
        if deleted:
            _vacuum(conn)
        if deleted >= CHUNK_ROWS:
            return True
    return False


def ulid_floor(instant_ms: int) -> str:
    """Give the least ULID of an instant: decisions carry no time column, their id does."""
    value = max(0, instant_ms)
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(5 * (_ULID_TIME_CHARS - 1), -1, -5))


def _vacuum(conn: sa.Connection) -> None:
    """Give freed pages back to the file system; the pragma frees a page per step, so its cursor is read to the end."""
    if conn.dialect.name != "sqlite":
        return
    driver = conn.connection.driver_connection
    assert driver is not None, "an open connection has one"
    driver.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()


def _chunks(now_ms: int, ages: Ages) -> Iterator[sa.Delete]:
    oldest_ms = now_ms - ages.calls_days * _DAY_MS
    for table in (schema.attempts, schema.calls):
        old = sa.select(table.c.seq).where(table.c.ended_at_ms < oldest_ms).order_by(table.c.ended_at_ms)
        yield sa.delete(table).where(table.c.seq.in_(old.limit(CHUNK_ROWS).scalar_subquery()))
    buckets = schema.attempt_buckets
    # One row per 10 s, route and writer: what ages out between two runs is far less than a chunk.
    yield sa.delete(buckets).where(buckets.c.bucket_ms < now_ms - BUCKETS_MS)
    late = schema.late_buckets
    yield sa.delete(late).where(late.c.recorded_at_ms < now_ms - BUCKETS_MS)
    for table, at in ((schema.usage_hourly, "hour_ms"), (schema.dirty_hours, "hour_ms"), (schema.budgets, "day_ms")):
        yield sa.delete(table).where(table.c[at] < now_ms - ages.hourly_days * _DAY_MS)
    decisions = schema.decisions
    floor = ulid_floor(now_ms - ages.decisions_days * _DAY_MS)
    old_ids = sa.select(decisions.c.call_id).where(decisions.c.call_id < floor).order_by(decisions.c.call_id)
    yield sa.delete(decisions).where(decisions.c.call_id.in_(old_ids.limit(CHUNK_ROWS).scalar_subquery()))
