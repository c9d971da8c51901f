"""What a period would have cost by another version of the price book, written beside what was billed (ledger §7)."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import sqlalchemy as sa

from turnout.core.pricing import PriceBook, Tokens
from turnout.ledger import schema

_PAGE: Final = 5_000


class Rerated(msgspec.Struct, frozen=True):
    """What attempts of one tenant at one provider cost, and would cost by the other version."""

    tenant: str
    provider: str
    n: int
    old_nusd: int
    new_nusd: int
    unpriced_n: int


def rerate(
    conn: sa.Connection, book: PriceBook, *, from_ms: int, until_ms: int, rerate_id: int, dry_run: bool
) -> list[Rerated]:
    """Price every `computed` attempt that ended in [from, until) by another version; what was billed stays.

    Repeating it with the same version gives the same sums. `dry_run` writes nothing.
    """
    attempts, routes, calls = schema.attempts, schema.routes, schema.calls
    tokens = (attempts.c[name] for name in ("tokens_in", "tokens_out", "tokens_cached", "tokens_cache_write"))
    query = (
        sa.select(
            *(attempts.c.seq, attempts.c.call_id, attempts.c.attempt_no, attempts.c.phase, attempts.c.cost_nusd),
            *(calls.c.tenant, routes.c.provider, routes.c.model),
            *tokens,
        )
        .select_from(attempts.join(routes).outerjoin(calls, calls.c.call_id == attempts.c.call_id))
        .where(attempts.c.ended_at_ms >= from_ms, attempts.c.ended_at_ms < until_ms)
        .where(attempts.c.cost_basis == "computed")
        .order_by(attempts.c.seq)
        .limit(_PAGE)
    )
    sums: dict[tuple[str, str], list[int]] = {}
    last = -1
    while True:
        page = conn.execute(query.where(attempts.c.seq > last)).all()
        if not page:
            break
        last = page[-1].seq
        new: list[dict[str, Any]] = []
        for row in page:
            cost = book.list_nusd(row.provider, row.model, Tokens(*row[8:12]))
            total = sums.setdefault((row.tenant or "", row.provider), [0, 0, 0, 0])
            for at, value in enumerate((1, row.cost_nusd or 0, cost or 0, cost is None)):
                total[at] += value
            key = {"rerate_id": rerate_id, "call_id": row.call_id, "attempt_no": row.attempt_no, "phase": row.phase}
            new.append({**key, "cost_nusd": cost, "list_nusd": cost})
        if not dry_run:
            conn.execute(sa.insert(schema.rerated), new)
    return [Rerated(tenant, provider, *sums[tenant, provider]) for tenant, provider in sorted(sums)]
