"""`turnout ledger`: look after the record of calls: upgrade, check, prune, export, prices and re-rating."""

from __future__ import annotations

import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

if TYPE_CHECKING:
    from turnout.ledger.rerating import Rerating

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Url = Annotated[str, typer.Option("--url", help="sqlite:///file or postgresql://…; default: of the configuration.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="The configuration, a TOML file.")]
_PAGE: Final = 10_000
_DAY_MS: Final = 86_400_000


@app.callback()
def ledger() -> None:
    """Look after the ledger.

    \b
    Examples:
      turnout ledger check -c turnout.toml
      turnout ledger upgrade --url postgresql://turnout@db/turnout
      turnout ledger export calls -c turnout.toml --since 24h > calls.ndjson
    """  # noqa: D301 - \b keeps the lines of the examples


@app.command()
def upgrade(config: Config = None, url: Url = "") -> None:
    """Bring the schema to this version; safe to run twice and beside running routers."""
    from turnout.ledger import upgrade as files

    address = _address(config, url)
    if files.is_file(address):
        path = files.path_of(address)
        with _reporting():
            files.prepare(path, clock_ms=_now_ms, on_event=_event)
        typer.echo(f"{path}: revision {files.HEAD}")
        return
    with _reporting():
        from turnout.ledger import server_upgrade

        before = server_upgrade.run(address)
    typer.echo(f"ledger: revision {before or 'none'} → {files.HEAD}")


@app.command()
def check(config: Config = None, url: Url = "") -> None:
    """Verify schema, file and sums; exit 1 when something is wrong.

    Every bucket of the last 48 hours must equal the sum of its rows, each call the sum of its attempts.
    """
    from turnout.ledger import audit
    from turnout.ledger import upgrade as files

    address = _address(config, url)
    problems: list[str] = []
    with _reporting():
        if files.is_file(address):
            path = files.path_of(address)
            state = files.check(path)
            if state.corrupt or state.revision != files.HEAD:
                typer.echo(f"{path}: {state.corrupt or f'revision {state.revision}, expected {files.HEAD}'}", err=True)
                raise typer.Exit(1)
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as conn:
                found = [row[0] for row in conn.execute("PRAGMA integrity_check(10)")]
            problems += [] if found == ["ok"] else found
        else:
            from turnout.ledger import server_upgrade

            server_upgrade.check(address)
        report = audit.run(address, _now_ms())
    problems += report.problems
    typer.echo(f"calls {report.calls}, attempts {report.attempts}, routes {report.routes}")
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    if problems:
        raise typer.Exit(1)


@app.command()
def prune(config: Config = None, url: Url = "", days: Annotated[int | None, typer.Option(min=1)] = None) -> None:
    """Delete what is older than the retention now, in small transactions. Not beside a running router on SQLite."""
    from turnout.ledger import connection, retention

    address = _address(config, url)
    section = _section(config)
    ages = retention.Ages(
        calls_days=days or section.retention_days,
        decisions_days=min(days or section.decisions_days, section.decisions_days),
        hourly_days=section.hourly_days,
    )
    with _reporting():
        engine = connection.writing(address)
        chunks = 1
        with engine.connect() as conn:
            while retention.prune(conn, _now_ms(), ages):
                chunks += 1
                time.sleep(0.05)  # batches of running routers come in between
        engine.dispose()
    typer.echo(f"pruned in {chunks} transactions")


@app.command()
def export(
    table: Annotated[str, typer.Argument(help="calls or attempts")],
    config: Config = None,
    url: Url = "",
    since: Annotated[str, typer.Option(help="15m, 24h, 7d, 4w, or an instant such as 2026-01-31T00:00:00Z.")] = "",
    cursor: Annotated[str, typer.Option(help="Go on behind an earlier export.")] = "",
) -> None:
    """Write rows as NDJSON in the order of recording; the cursor of the end goes to standard error."""
    from turnout.ledger.pages import lines
    from turnout.ledger.reader import Reader

    if table not in {"calls", "attempts"}:
        _fail(f"table {table!r}: expected calls or attempts")
    reader, more = Reader(_address(config, url)), True
    since_ms = _instant(since) if since else 0
    with _reporting(), closing(reader):
        while more:
            page, more = reader.export(table, since_ms=since_ms, cursor=cursor, limit=_PAGE, now_ms=_now_ms())
            sys.stdout.buffer.write(lines(page))
            cursor = page.cursor
    sys.stdout.flush()
    typer.echo(f"cursor {cursor}", err=True)


@app.command("prices")
def import_prices(
    file: Annotated[Path, typer.Argument(help="A JSON list, or TOML with [[price]] tables; USD per million tokens.")],
    config: Config = None,
    url: Url = "",
    effective: Annotated[str, typer.Option(help="Instant from which it holds; default: now.")] = "",
    note: Annotated[str, typer.Option(help="Kept with the version.")] = "",
) -> None:
    """Append a version to the price book; a file with one bad entry changes nothing."""
    from turnout.ledger import prices

    with _reporting():
        rows = prices.read(file)
        with _transaction(_address(config, url)) as conn:
            version = prices.add(
                conn,
                rows,
                effective_from_ms=_instant(effective) if effective else _now_ms(),
                created_at_ms=_now_ms(),
                source=file.name,
                note=note,
            )
    typer.echo(f"version {version}, {len(rows)} prices")


@app.command()
def rerate(
    version: Annotated[int, typer.Option(help="The version of the price book to use.")],
    since: Annotated[str, typer.Option("--from", help="First instant.")],
    until: Annotated[str, typer.Option("--to", help="Instant behind the last.")],
    config: Config = None,
    url: Url = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print only.")] = False,  # noqa: FBT002 - typer's form
    apply_budgets: Annotated[bool, typer.Option("--apply-budgets", help="Move spending, too.")] = False,  # noqa: FBT002 - as dry_run
) -> None:
    """Price a period by another version, beside what was billed, and print old and new sums.

    Calls stay as billed. With --apply-budgets spending moves to what the version says, all of it or none, and running
    routers know a second later; the same version once more moves nothing, a later one only by the difference.

    \b
    Examples:
      turnout ledger rerate -c turnout.toml --version 3 --from 7d --to 2026-02-01
      turnout ledger rerate -c turnout.toml --version 3 --from 7d --to 2026-02-01 --apply-budgets --dry-run
    """  # noqa: D301 - \b keeps the lines of the examples
    from turnout.ledger import prices, rerating

    with _reporting(), _transaction(_address(config, url), reading=dry_run) as conn:
        if version not in {known.version for known in prices.versions(conn)}:
            _fail(f"version {version}: the book has no such version")
        rerate_id = _now_ms()
        found = rerating.rerate(
            conn,
            prices.load(conn, version, _section(config).default_cached_price_factor),
            from_ms=_instant(since),
            until_ms=_instant(until),
            rerate_id=rerate_id,
            dry_run=dry_run,
            apply_budgets=apply_budgets,
        )
    typer.echo(f"rerate {'(dry run)' if dry_run else rerate_id}, version {version}")
    for line in _rerated(found, budgets=apply_budgets):
        typer.echo(line)


def _rerated(found: Rerating, *, budgets: bool) -> Iterator[str]:
    from turnout.core.pricing import usd

    for row in found.sums:
        unpriced = f", {row.unpriced_n} without a price" if row.unpriced_n else ""
        sums = f"{usd(row.old_nusd)} → {usd(row.new_nusd)} USD"
        yield f"{row.tenant or '-'} {row.provider or '-'}: {row.n} attempts, {sums}{unpriced}"
    for move in found.moves:
        day = datetime.fromtimestamp(move.day_ms // 1000, UTC).date()
        amount = f"{'+' if move.nusd > 0 else '-'}{usd(abs(move.nusd))} USD"
        yield f"budget of {move.tenant or '-'}, key {move.key_id or '-'}, {day}: {amount}"
    if budgets and not found.moves:
        yield "no budget moves"


def _section(config: Path | None) -> Any:
    from turnout.core.options import Ledger

    if config is None:
        return Ledger()
    from turnout.config.errors import ConfigError
    from turnout.config.load import load

    try:
        return load(config, os.environ).config.ledger
    except ConfigError as error:
        _fail(str(error))


def _address(config: Path | None, url: str) -> str:
    from turnout.ledger import upgrade as files
    from turnout.ledger.sink import LedgerRefusedError

    if not url and config is None:
        _fail("expected --config FILE or --url ADDRESS")
    address = url or str(_section(config).url)
    try:
        files.is_file(address)
    except LedgerRefusedError as error:
        _fail(str(error))
    return address


@contextmanager
def _transaction(address: str, *, reading: bool = False) -> Iterator[Any]:
    """Hold one transaction on the database of an address; `reading` keeps nobody from writing."""
    from turnout.ledger import connection

    engine = connection.reading(address) if reading else connection.writing(address)
    try:
        with engine.begin() as conn:
            yield conn
    finally:
        engine.dispose()


@contextmanager
def _reporting() -> Iterator[None]:
    """Turn what can be wrong with a database or a file into one line and exit 1."""
    from sqlalchemy.exc import DBAPIError

    from turnout.ledger.sink import LedgerRefusedError

    try:
        yield
    except DBAPIError as error:
        _fail(f"ledger: {error.orig}", code=1)
    except (LedgerRefusedError, OSError, ValueError, sqlite3.Error) as error:
        _fail(str(error), code=1)


def _instant(text: str) -> int:
    from turnout.console.ledger_pages import BadParameterError, window_of

    if re.fullmatch("[0-9]{1,5}[mhdw]", text):
        try:
            return _now_ms() - window_of(text)
        except BadParameterError as error:
            _fail(str(error))
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        _fail(f"instant {text!r}: expected 15m, 24h, 7d, 4w or ISO 8601")
    return int((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp() * 1000)


def _event(name: str, /, **fields: object) -> None:
    typer.echo(f"{name}: {', '.join(f'{key}={value}' for key, value in fields.items())}")


def _fail(message: str, *, code: int = 2) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
