"""What is too old goes in small transactions, so that a batch never waits long behind a deletion (ledger §4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from turnout.ledger import queries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turnout.ledger.queries import Connection

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


def prune(conn: Connection, now_ms: int, ages: Ages) -> bool:
    """Delete at most one chunk; True while a full chunk was found, so more may wait."""
    for statement, oldest in _chunks(now_ms, ages):
        with queries.transaction(conn):
            deleted = queries.change(conn, statement, oldest=oldest)
        if deleted:
            _vacuum(conn)
        if deleted >= CHUNK_ROWS:
            return True
    return False


def ulid_floor(instant_ms: int) -> str:
    """Give the least ULID of an instant: what explains or re-rates a call carries no time column, its id does."""
    value = max(0, instant_ms)
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(5 * (_ULID_TIME_CHARS - 1), -1, -5))


def _vacuum(conn: Connection) -> None:
    """Give freed pages back to the file system; the pragma frees a page per step, so its cursor is read to the end."""
    file = queries.driver_of(conn)
    if file is not None:
        file.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()


def _chunks(now_ms: int, ages: Ages) -> Iterator[tuple[str, int | str]]:
    """Give the deletions, each with the bound that its `:oldest` stands for."""
    calls_ms = now_ms - ages.calls_days * _DAY_MS
    for table in ("attempts", "calls"):
        yield _chunk(table, "seq", "ended_at_ms"), calls_ms
    # Behind the calls: `turnout ledger check` never meets a call whose part in a budget has gone.
    yield _chunk("budget_moves", "call_id", "ended_at_ms"), calls_ms
    yield _chunk("rerated", "call_id", "call_id"), ulid_floor(calls_ms)
    # One row per 10 s, route and writer: what ages out between two runs is far less than a chunk.
    yield "DELETE FROM attempt_buckets WHERE bucket_ms < :oldest", now_ms - BUCKETS_MS
    yield "DELETE FROM late_buckets WHERE recorded_at_ms < :oldest", now_ms - BUCKETS_MS
    hours_ms = now_ms - ages.hourly_days * _DAY_MS
    for table, at in (("usage_hourly", "hour_ms"), ("dirty_hours", "hour_ms"), ("budgets", "day_ms")):
        yield f"DELETE FROM {table} WHERE {at} < :oldest", hours_ms  # noqa: S608 - names of our own
    yield _chunk("decisions", "call_id", "call_id"), ulid_floor(now_ms - ages.decisions_days * _DAY_MS)


def _chunk(table: str, key: str, at: str) -> str:
    """Delete the oldest rows of a table, at most a chunk of them."""
    old = f"SELECT {key} FROM {table} WHERE {at} < :oldest ORDER BY {at} LIMIT {CHUNK_ROWS}"  # noqa: S608 - names of our own
    return f"DELETE FROM {table} WHERE {key} IN ({old})"  # noqa: S608 - names of our own
