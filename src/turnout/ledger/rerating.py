"""What a period would have cost by another version of the price book, beside what was billed (ledger §7).

Rows of calls and attempts stay as billed. Budgets move only where that is asked for: then an attempt counts what the
version says, and its row of `budget_moves` keeps how far that is from its bill. So a version that is applied twice
moves nothing, and a later one only by the difference. What a version has no price for counts as billed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import sqlalchemy as sa

from turnout.core.pricing import PriceBook, Tokens
from turnout.ledger import schema
from turnout.ledger.sink import LedgerRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PAGE: Final = 5_000
_DAY_MS: Final = 86_400_000
# Any constant serves that no other lock of this database has.
_LOCK_ID: Final = 0x7475726E6F7575
_TOKENS: Final = ("tokens_in", "tokens_out", "tokens_cached", "tokens_cache_write")
_REMEMBER = sa.text(
    "INSERT INTO budget_moves (call_id, attempt_no, phase, ended_at_ms, price_version, moved_nusd)"
    " VALUES (:call_id, :attempt_no, :phase, :ended_at_ms, :price_version, :moved_nusd)"
    " ON CONFLICT (call_id, attempt_no, phase) DO UPDATE"
    " SET price_version = excluded.price_version, moved_nusd = excluded.moved_nusd"
)
# Two statements, because a CHECK looks at what is to be inserted even where a row is there.
_MORE = sa.text(
    "INSERT INTO budgets (tenant, key_id, day_ms, spent_nusd) VALUES (:tenant, :key_id, :day_ms, :nusd)"
    " ON CONFLICT (tenant, key_id, day_ms) DO UPDATE SET spent_nusd = budgets.spent_nusd + excluded.spent_nusd"
)
_LESS = sa.text(
    "UPDATE budgets SET spent_nusd = spent_nusd + :nusd"
    " WHERE tenant = :tenant AND key_id = :key_id AND day_ms = :day_ms"
)


class Rerated(msgspec.Struct, frozen=True):
    """What attempts of one tenant at one provider cost, and would cost by the other version."""

    tenant: str
    provider: str
    n: int
    old_nusd: int
    new_nusd: int
    unpriced_n: int


class Moved(msgspec.Struct, frozen=True):
    """By how much the spending of a key on a day (UTC) rises, or falls."""

    tenant: str
    key_id: str
    day_ms: int
    nusd: int


class Rerating:
    """One pass over a period: sums per tenant and provider, and moves of budgets, both sorted when asked for."""

    def __init__(self, book: PriceBook) -> None:
        self._book = book
        self._sums: dict[tuple[str, str], list[int]] = {}
        self._moves: dict[tuple[str, str, int], int] = {}

    @property
    def sums(self) -> list[Rerated]:
        """What was billed and what it would be."""
        return [Rerated(*key, *self._sums[key]) for key in sorted(self._sums)]

    @property
    def moves(self) -> list[Moved]:
        """The budgets that move; every transaction locks them in this order."""
        return [Moved(*key, self._moves[key]) for key in sorted(self._moves) if self._moves[key]]

    def price(self, row: sa.Row[Any]) -> int | None:
        """Add an attempt to the sums, and give its cost; None where the book has no price for it."""
        tokens = Tokens(row.tokens_in, row.tokens_out, row.tokens_cached, row.tokens_cache_write)
        cost = self._book.list_nusd(row.provider, row.model, tokens)
        total = self._sums.setdefault((row.tenant or "", row.provider), [0, 0, 0, 0])
        for at, value in enumerate((1, row.cost_nusd or 0, cost or 0, cost is None)):
            total[at] += value
        return cost

    def move(self, row: sa.Row[Any], cost: int | None) -> int | None:
        """Add an attempt to the moves, and give how far from its bill it counts now; None where nothing changes.

        A call without a cost counts in no budget, and one that is still open will, as billed.
        """
        if row.call_cost_nusd is None:
            return None
        moved = cost - (row.cost_nusd or 0) if cost is not None else 0
        before = row.moved_nusd or 0
        if moved == before:
            return None
        key = (row.tenant, row.key_id, row.call_ended_at_ms // _DAY_MS * _DAY_MS)
        self._moves[key] = self._moves.get(key, 0) + moved - before
        return moved


def rerate(
    conn: sa.Connection,
    book: PriceBook,
    *,
    from_ms: int,
    until_ms: int,
    rerate_id: int,
    dry_run: bool,
    apply_budgets: bool = False,
) -> Rerating:
    """Price every `computed` attempt that ended in [from, until) by another version, inside the caller's transaction.

    `dry_run` writes nothing, and may read from a connection that cannot write.

    Raises:
        LedgerRefusedError: budgets are being moved by somebody else right now.
    """
    if apply_budgets and not dry_run:
        _alone(conn)
    found = Rerating(book)
    for page in _pages(conn, from_ms, until_ms, with_moves=apply_budgets):
        costs = [found.price(row) for row in page]
        if not dry_run:
            conn.execute(sa.insert(schema.rerated), _rerated_rows(rerate_id, page, costs))
        if apply_budgets:
            moved = [found.move(row, cost) for row, cost in zip(page, costs, strict=True)]
            changed = _move_rows(book.version, page, moved)
            if changed and not dry_run:
                conn.execute(_REMEMBER, changed)
    if not dry_run:
        # At the end and in order: routers that settle calls of these keys wait for this lock.
        for move in found.moves:
            conn.execute(_MORE if move.nusd > 0 else _LESS, msgspec.structs.asdict(move))
    return found


def _pages(conn: sa.Connection, from_ms: int, until_ms: int, *, with_moves: bool) -> Iterator[Sequence[sa.Row[Any]]]:
    attempts, routes, calls, moves = schema.attempts, schema.routes, schema.calls, schema.budget_moves
    tables = attempts.join(routes).outerjoin(calls, calls.c.call_id == attempts.c.call_id)
    columns: list[sa.ColumnElement[Any]] = [
        *(attempts.c[name] for name in ("seq", "call_id", "attempt_no", "phase", "cost_nusd", *_TOKENS)),
        *(routes.c.provider, routes.c.model, calls.c.tenant, calls.c.key_id),
        *(calls.c.ended_at_ms.label("call_ended_at_ms"), calls.c.cost_nusd.label("call_cost_nusd")),
    ]
    if with_moves:
        same = sa.and_(*(moves.c[name] == attempts.c[name] for name in ("call_id", "attempt_no", "phase")))
        tables, columns = tables.outerjoin(moves, same), [*columns, moves.c.moved_nusd]
    query = (
        sa.select(*columns)
        .select_from(tables)
        .where(attempts.c.ended_at_ms >= from_ms, attempts.c.ended_at_ms < until_ms)
        .where(attempts.c.cost_basis == "computed")
        .order_by(attempts.c.seq)
        .limit(_PAGE)
    )
    last = -1
    while page := conn.execute(query.where(attempts.c.seq > last)).all():
        last = page[-1].seq
        yield page


def _rerated_rows(rerate_id: int, page: Sequence[sa.Row[Any]], costs: list[int | None]) -> list[dict[str, Any]]:
    return [
        {"rerate_id": rerate_id, **_key(row), "cost_nusd": cost, "list_nusd": cost}
        for row, cost in zip(page, costs, strict=True)
    ]


def _move_rows(version: int | None, page: Sequence[sa.Row[Any]], moved: Sequence[int | None]) -> list[dict[str, Any]]:
    return [
        {**_key(row), "ended_at_ms": row.call_ended_at_ms, "price_version": version, "moved_nusd": nusd}
        for row, nusd in zip(page, moved, strict=True)
        if nusd is not None
    ]


def _key(row: sa.Row[Any]) -> dict[str, Any]:
    return {"call_id": row.call_id, "attempt_no": row.attempt_no, "phase": row.phase}


def _alone(conn: sa.Connection) -> None:
    """Let nobody else move budgets before this transaction ends; on SQLite nobody else can write at all."""
    if conn.dialect.name == "postgresql" and not conn.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(_LOCK_ID))):
        raise LedgerRefusedError("ledger: another re-rating moves budgets at the moment; run it again later")
