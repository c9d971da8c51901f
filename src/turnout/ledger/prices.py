"""The versioned price book in the ledger, and what a period would have cost by another version (ledger §7).

Versions are append-only; a bad import changes nothing. Re-rating writes beside what was billed, never over it.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from turnout.core.pricing import Price, PriceBook, Tokens, micro_usd
from turnout.ledger import schema
from turnout.ledger.sink import LedgerRefusedError

_PAGE: Final = 5_000


class Version(msgspec.Struct, frozen=True):
    """One version of the book."""

    version: int
    effective_from_ms: int
    created_at_ms: int
    source: str
    note: str


class Rerated(msgspec.Struct, frozen=True):
    """What attempts of one tenant at one provider cost, and would cost by the other version."""

    tenant: str
    provider: str
    n: int
    old_nusd: int
    new_nusd: int
    unpriced_n: int


def versions(conn: sa.Connection) -> list[Version]:
    """Give every version, oldest first."""
    table = schema.price_versions
    return [Version(*row) for row in conn.execute(sa.select(table).order_by(table.c.version))]


def in_force(conn: sa.Connection, at_ms: int) -> int | None:
    """Give the version that prices an attempt that starts at an instant; of equal instants the newest."""
    table = schema.price_versions
    found: int | None = conn.execute(
        sa.select(table.c.version)
        .where(table.c.effective_from_ms <= at_ms)
        .order_by(table.c.effective_from_ms.desc(), table.c.version.desc())
        .limit(1)
    ).scalar()
    return found


def of_version(conn: sa.Connection, version: int | None) -> list[Price]:
    """Give the prices of one version; none for None."""
    table = schema.prices
    found = conn.execute(sa.select(table).where(table.c.version == version)).mappings() if version is not None else ()
    return [Price(**{k: v for k, v in row.items() if k != "version"}) for row in found]


def load(conn: sa.Connection, version: int | None, cached_factor: float = 0.1) -> PriceBook:
    """Give one version as a book; an empty book for None."""
    return PriceBook.of(version, of_version(conn, version), cached_factor)


def add(
    conn: sa.Connection,
    prices: Iterable[Price],
    *,
    effective_from_ms: int,
    created_at_ms: int,
    source: str,
    note: str = "",
) -> int:
    """Append a version, inside the caller's transaction, and return it.

    Raises:
        LedgerRefusedError: a price is negative, absurd or given twice.
    """
    rows = list(prices)
    problem = next((found for found in (price.problem() for price in rows) if found), None)
    keys = [(price.provider, price.model) for price in rows]
    twice = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
    if problem or twice or not rows:
        raise LedgerRefusedError(f"prices: {problem or (f'{twice} is given twice' if twice else 'the book is empty')}")
    table = schema.price_versions
    given = {"effective_from_ms": effective_from_ms, "created_at_ms": created_at_ms, "source": source, "note": note}
    version: int = conn.execute(sa.insert(table).values(given).returning(table.c.version)).scalar_one()
    conn.execute(sa.insert(schema.prices), [{"version": version, **msgspec.structs.asdict(price)} for price in rows])
    return version


def read(file: Path) -> list[Price]:
    """Read a price file: a JSON list, or TOML with `[[price]]` tables.

    Raises:
        LedgerRefusedError: it is neither, or an entry is wrong.
        OSError: it cannot be read.
    """
    text = file.read_text(encoding="utf-8")
    try:
        document = tomllib.loads(text).get("price") if file.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise LedgerRefusedError(f"{file}: {error}") from None
    return parse(document)


def add_once(conn: sa.Connection, file: Path, now_ms: int) -> int | None:
    """Append a file as the version in force from now on, inside the caller's transaction; None: it is there already.

    Routers that start at the same time with the same file make one version of it.

    Raises:
        LedgerRefusedError, OSError: as `read` and `add`.
    """
    rows = read(file)
    source = f"{file.name} {hashlib.sha256(msgspec.json.encode(rows)).hexdigest()[:16]}"
    if conn.dialect.name == "postgresql":
        conn.exec_driver_sql("LOCK TABLE price_versions IN SHARE ROW EXCLUSIVE MODE")
    newest = conn.execute(
        sa.select(schema.price_versions.c.source).order_by(schema.price_versions.c.version.desc()).limit(1)
    ).scalar()
    if newest == source:
        return None
    return add(conn, rows, effective_from_ms=now_ms, created_at_ms=now_ms, source=source)


def parse(document: Any) -> list[Price]:
    """Read a price file: a list of tables with `model` and prices in USD per million tokens, numbers or strings.

    Raises:
        LedgerRefusedError: with the number of the entry and the field.
    """
    if not isinstance(document, list):
        raise LedgerRefusedError("prices: expected a list of entries")
    return [_parsed(number, entry) for number, entry in enumerate(document)]


def _parsed(number: int, entry: Any) -> Price:
    names = {"input": "p_in", "output": "p_out", "cached": "p_cached", "cache_write": "p_write"}
    names |= {"input_above": "p_in_above", "output_above": "p_out_above"}
    if not isinstance(entry, dict) or not isinstance(entry.get("model"), str) or not entry["model"]:
        raise LedgerRefusedError(f"prices[{number}]: expected a table with a model")
    unknown = set(entry) - {*names, "model", "provider", "above_tokens"}
    if unknown:
        raise LedgerRefusedError(f"prices[{number}]: unknown field {min(unknown)!r}")
    values: dict[str, Any] = {"model": entry["model"], "provider": entry.get("provider", "")}
    above = entry.get("above_tokens")
    if not isinstance(values["provider"], str) or not (above is None or (type(above) is int and above >= 0)):
        raise LedgerRefusedError(f"prices[{number}]: provider is a text, above_tokens an integer from 0")
    values["above_tokens"] = above
    for name, column in names.items():
        value = entry.get(name)
        if isinstance(value, bool) or not (value is None or isinstance(value, int | float | str)):
            raise LedgerRefusedError(f"prices[{number}].{name}: {value!r}, expected a number")
        try:
            values[column] = None if value is None else micro_usd(value)
        except ValueError as error:
            raise LedgerRefusedError(f"prices[{number}].{name}: {error}") from None
    return Price(**values)


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
