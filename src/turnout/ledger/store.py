"""A batch is one transaction, stored whole or not at all, whatever database stands behind it.

Rows are immutable and the first write wins; bucket sums, budgets and marks move only for rows that are really
inserted, so any replay changes nothing. A batch is taken to be new, as nearly all are; when one row of it is there
already, the transaction is undone and made again with everything that has a row looked up first and left out.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from turnout.ledger import retention, rollup, rows
from turnout.ledger.sink import SinkDownError, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from turnout.core.facts import CallFact, RouteKey
    from turnout.ledger.queries import Connection

_ROUTES_MAX = 65_536
LATE_MS: Final = 30_000
"""A bucket changed later than this after its instant is marked: whoever summed it up must do so again (ADR 0010)."""


class AlreadyStoredError(Exception):
    """A row that was taken to be new is there already."""


class Transaction(Protocol):
    """What a batch needs of an open transaction."""

    def now_ms(self) -> int:
        """The instant it began, by the clock that all writers of this database share."""

    def known_calls(self, call_ids: list[str]) -> list[str]:
        """Which of these calls have a row."""

    def known_attempts(self, call_ids: list[str]) -> list[rows.AttemptId]:
        """Every attempt of these calls that has a row."""

    def route_id(self, key: RouteKey) -> tuple[int, bool]:
        """The id of a route, and whether it was made for this."""

    def insert(self, table: str, new: list[rows.Row]) -> None:
        """Insert rows in the table's column order, without its identity column; those that are there stay."""

    def insert_columns(self, table: str, new: rows.Columns) -> None:
        """Insert calls or attempts, or raise AlreadyStoredError."""


class Database(Protocol):
    """One writing connection. `connection` is the same one, for what is not a batch."""

    chunk: int
    """Rows handled at a time."""

    def connection(self) -> Connection:
        """Open it if need be."""

    def writer(self) -> tuple[int, int]:
        """The id of this process as a writer, and the latest `recorded_at_ms` that any row carries."""

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Begin; commit at the end, roll back on an exception."""

    def trouble(self, error: Exception) -> str | None:
        """The kind of a failure of the database; None when a row was at fault."""

    def reset(self) -> None:
        """Let go of the connection without a word."""


class Store:
    """Writes batches, prunes and closes. Owned by one thread; opens its connection on first use."""

    def __init__(
        self,
        database: Database,
        *,
        router_id: str,
        clock_ms: Callable[[], int],
        ages: retention.Ages,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        """Describe a database that `upgrade` has brought to the newest schema; `finish` runs when it is closed."""
        self._database = database
        self._router_id = router_id
        self._clock_ms = clock_ms
        self._ages = ages
        self._finish = finish
        self._writer_id = 0
        self._stamp_ms = 0
        self._routes: dict[RouteKey | None, int | None] = {None: None}

    def write(self, facts: Sequence[CallFact]) -> Written:
        """Store all facts in one transaction; facts that no table can hold are counted and left out.

        Raises:
            SinkDownError: the database cannot take the batch now; nothing of it is stored.
        """
        try:
            try:
                return self._transaction(facts, known=False)
            except AlreadyStoredError:
                self._routes = {None: None}
                return self._transaction(facts, known=True)
        except Exception as error:
            # Found twice: another router stores the same call at this moment.
            kind = "locked" if isinstance(error, AlreadyStoredError) else self._database.trouble(error)
            self._routes = {None: None}
            if kind is not None:
                raise self._down(kind, error) from error
        # A value that no column can hold (an integer beyond int64, text that is not UTF-8, negative money).
        if len(facts) == 1:
            return Written(invalid=1)
        middle = len(facts) // 2
        return self.write(facts[:middle]).plus(self.write(facts[middle:]))

    def prune(self) -> bool:
        """Sum up one hour, or delete one chunk of what is too old; True while there is more.

        Raises:
            SinkDownError: the database cannot be changed now.
        """
        try:
            # Hours first: what is deleted has been summed up.
            if rollup.run(self._database.connection(), self._clock_ms(), self._ages.calls_days):
                return True
            return retention.prune(self._database.connection(), self._clock_ms(), self._ages)
        except Exception as error:
            raise self._down(self._database.trouble(error) or "other", error) from error

    def close(self) -> None:
        """Leave the database as it should be found; never raises."""
        self._finish()
        self._database.reset()

    def _transaction(self, facts: Sequence[CallFact], *, known: bool) -> Written:
        """Store facts; `known`: some have rows."""
        if not self._writer_id:
            self._writer_id, self._stamp_ms = self._database.writer()
        with self._database.transaction() as transaction:
            # Never backwards: what was recorded later carries a later or equal stamp, whatever the wall clock does.
            now_ms = max(transaction.now_ms(), self._stamp_ms)
            apart = {fact.call_id for fact in facts if known or not rows.plain(fact)}
            fresh = _fresh(facts, apart, transaction) if apart else facts
            stored = set(transaction.known_attempts(list(apart))) if apart else set()
            routes_n = self._learn_routes(transaction, fresh)
            stamp = rows.Stamp(self._router_id, self._writer_id, now_ms)
            sums: rows.Sums = {}
            calls_n = attempts_n = decisions_n = too_large = 0
            unpriced: Counter[str] = Counter()
            # Row by row the interpreter is needed, in the statements it is not: small chunks let requests in between.
            for start in range(0, len(fresh), self._database.chunk):
                part = fresh[start : start + self._database.chunk]
                made = rows.batch(part, stamp, self._routes, sums, stored, apart)
                if made.calls:
                    transaction.insert_columns("calls", made.calls)
                    calls_n += len(made.calls[0])
                if made.attempts:
                    transaction.insert_columns("attempts", made.attempts)
                    attempts_n += len(made.attempts[0])
                transaction.insert("decisions", made.decisions)
                decisions_n += len(made.decisions)
                too_large += made.too_large
                unpriced += made.unpriced
            transaction.insert("attempt_buckets", rows.bucket_rows(sums, self._writer_id))
            transaction.insert("budgets", rows.spent_rows(fresh))
            late = sorted({bucket for bucket, _ in sums if bucket + rows.BUCKET_MS + LATE_MS < now_ms})
            transaction.insert("late_buckets", [(now_ms, bucket, self._writer_id) for bucket in late])
            closed = now_ms - rollup.CLOSES_MS - rollup.HOUR_MS
            hours = {fact.ended_at_ms // rollup.HOUR_MS * rollup.HOUR_MS for fact in fresh if fact.outcome}
            transaction.insert("dirty_hours", [(hour,) for hour in sorted(hours) if hour <= closed])
        self._stamp_ms = now_ms
        return Written(
            calls=calls_n,
            attempts=attempts_n,
            routes=routes_n,
            decisions=decisions_n,
            decisions_too_large=too_large,
            duplicates=len(facts) - len(fresh),
            commits=1,
            unpriced=unpriced,
        )

    def _learn_routes(self, transaction: Transaction, facts: Sequence[CallFact]) -> int:
        if len(self._routes) > _ROUTES_MAX:
            self._routes = {None: None}
        inserted = 0
        for key in sorted(rows.route_keys(facts) - self._routes.keys(), key=msgspec.structs.astuple):
            self._routes[key], new = transaction.route_id(key)
            inserted += new
        return inserted

    def _down(self, kind: str, error: Exception) -> SinkDownError:
        # After an fsync error the state of the open log is unknown, so every failure starts over with a new
        # connection and the same batch.
        self._routes = {None: None}
        self._database.reset()
        return SinkDownError(kind, str(getattr(error, "orig", None) or error))


def _fresh(facts: Sequence[CallFact], apart: set[str], transaction: Transaction) -> list[CallFact]:
    """Leave out calls that are stored or come twice, and attempts of calls that are stored."""
    done = set(transaction.known_calls(list(apart)))
    fresh: list[CallFact] = []
    for fact in facts:
        if fact.call_id not in done:
            fresh.append(fact)
            if fact.outcome and fact.call_id in apart:
                done.add(fact.call_id)
    return fresh
