"""The versioned price book in the ledger (ledger §7): versions are append-only, and a bad import changes nothing."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from turnout.core.pricing import Price, PriceBook, micro_usd
from turnout.ledger import queries
from turnout.ledger.sink import LedgerRefusedError

if TYPE_CHECKING:
    from turnout.ledger.queries import Connection

_PRICE_COLUMNS: Final = Price.__struct_fields__
_VERSIONS: Final = "SELECT version, effective_from_ms, created_at_ms, source, note FROM price_versions ORDER BY version"
_IN_FORCE: Final = (
    "SELECT version FROM price_versions WHERE effective_from_ms <= :at"
    " ORDER BY effective_from_ms DESC, version DESC LIMIT 1"
)
_NEWEST: Final = "SELECT source FROM price_versions ORDER BY version DESC LIMIT 1"
_PRICES: Final = f"SELECT {', '.join(_PRICE_COLUMNS)} FROM prices WHERE version = :version"  # noqa: S608 - names of our own
_ADD: Final = (
    "INSERT INTO price_versions (effective_from_ms, created_at_ms, source, note)"
    " VALUES (:effective, :created, :source, :note) RETURNING version"
)
_LOCK: Final = "LOCK TABLE price_versions IN SHARE ROW EXCLUSIVE MODE"


class Version(msgspec.Struct, frozen=True):
    """One version of the book."""

    version: int
    effective_from_ms: int
    created_at_ms: int
    source: str
    note: str


def versions(conn: Connection) -> list[Version]:
    """Give every version, oldest first."""
    return [Version(*row) for row in queries.rows(conn, _VERSIONS)]


def in_force(conn: Connection, at_ms: int) -> int | None:
    """Give the version that prices an attempt that starts at an instant; of equal instants the newest."""
    found: int | None = queries.value(conn, _IN_FORCE, at=at_ms)
    return found


def of_version(conn: Connection, version: int | None) -> list[Price]:
    """Give the prices of one version; none for None."""
    if version is None:
        return []
    found = queries.rows(conn, _PRICES, version=version)
    return [Price(**dict(zip(_PRICE_COLUMNS, row, strict=True))) for row in found]


def load(conn: Connection, version: int | None, cached_factor: float = 0.1) -> PriceBook:
    """Give one version as a book; an empty book for None."""
    return PriceBook.of(version, of_version(conn, version), cached_factor)


def add(
    conn: Connection,
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
    given = {"effective": effective_from_ms, "created": created_at_ms, "source": source, "note": note}
    version: int = queries.value(conn, _ADD, **given)
    queries.insert(conn, "prices", [{"version": version, **msgspec.structs.asdict(price)} for price in rows])
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


def add_once(conn: Connection, file: Path, now_ms: int) -> int | None:
    """Append a file as the version in force from now on, inside the caller's transaction; None: it is there already.

    Routers that start at the same time with the same file make one version of it.

    Raises:
        LedgerRefusedError, OSError: as `read` and `add`.
    """
    rows = read(file)
    source = f"{file.name} {hashlib.sha256(msgspec.json.encode(rows)).hexdigest()[:16]}"
    if queries.on_server(conn):
        queries.change(conn, _LOCK)
    newest = queries.value(conn, _NEWEST)
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
