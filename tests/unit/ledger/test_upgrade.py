"""The file at the path becomes a database of the newest schema, or the start is refused with the reason."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from turnout.ledger import upgrade, upgrading
from turnout.ledger.sink import LedgerRefusedError
from turnout.ledger.store import Store
from turnout.ledger.upgrade import Prepare


@pytest.fixture(params=[upgrade.prepare, upgrading.prepare], ids=["here", "apart"])
def prepare(request: pytest.FixtureRequest) -> Prepare:
    found: Prepare = request.param
    return found


def test_a_missing_file_becomes_a_database_of_the_newest_schema(
    database: Path, prepare: Prepare, clock: Any, events: Any
) -> None:
    prepare(database, clock_ms=clock, on_event=events)
    assert upgrade.check(database) == upgrade.State(exists=True, revision=upgrade.HEAD)
    assert events.names == ["ledger_upgraded"]


def test_a_database_of_the_newest_schema_is_left_alone(
    database: Path, prepare: Prepare, store: Store, clock: Any, events: Any, call: Any
) -> None:
    store.write([call()])
    events.seen.clear()
    prepare(database, clock_ms=clock, on_event=events)
    assert events.seen == []
    assert store.write([call()]).duplicates == 1


def test_a_database_with_another_schema_is_copied_before_it_changes(
    database: Path, prepare: Prepare, clock: Any, events: Any
) -> None:
    with closing(sqlite3.connect(database)) as conn:
        conn.execute("CREATE TABLE keep (value)")
        conn.execute("INSERT INTO keep VALUES (7)")
        conn.commit()
    prepare(database, clock_ms=clock, on_event=events)
    assert events.names == ["ledger_copied", "ledger_upgraded"]
    copy = database.with_name(f"turnout.db.before-{upgrade.HEAD}-was-none")
    for path, tables in ((copy, 1), (database, 17)):
        with closing(sqlite3.connect(path)) as conn:
            assert conn.execute("SELECT value FROM keep").fetchall() == [(7,)]
            assert conn.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone() == (tables,)


def test_a_creation_that_was_interrupted_is_finished_without_a_copy(
    database: Path, prepare: Prepare, clock: Any, events: Any
) -> None:
    with closing(sqlite3.connect(database)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
    assert database.stat().st_size > 0
    prepare(database, clock_ms=clock, on_event=events)
    assert events.names == ["ledger_upgraded"]


@pytest.mark.usefixtures("store")
def test_a_newer_schema_than_the_code_refuses_the_start(
    database: Path, prepare: Prepare, clock: Any, events: Any
) -> None:
    with closing(sqlite3.connect(database)) as conn:
        conn.execute("UPDATE alembic_version SET version_num = '9999'")
        conn.commit()
    with pytest.raises(LedgerRefusedError, match=r"'9999'.*knows '0004'"):
        upgrade.check(database)
    with pytest.raises(LedgerRefusedError):
        prepare(database, clock_ms=clock, on_event=events)


def test_a_file_that_is_no_database_is_moved_aside(database: Path, prepare: Prepare, clock: Any, events: Any) -> None:
    database.write_bytes(b"this is no database" * 500)
    prepare(database, clock_ms=clock, on_event=events)
    assert events.names == ["ledger_corrupt", "ledger_upgraded"]
    aside = database.with_name(f"turnout.db.corrupt-{clock()}")
    assert aside.read_bytes() == b"this is no database" * 500
    assert upgrade.check(database).revision == upgrade.HEAD


def test_what_keeps_a_file_from_being_made_is_told_and_the_next_try_succeeds(
    database: Path, prepare: Prepare, clock: Any, events: Any
) -> None:
    late = database.parent / "later" / database.name
    with pytest.raises(Exception, match="unable to open database file"):
        prepare(late, clock_ms=clock, on_event=events)
    assert events.names == []
    late.parent.mkdir()
    prepare(late, clock_ms=clock, on_event=events)
    assert events.names == ["ledger_upgraded"]


@pytest.mark.parametrize(
    "url", ["", "sqlite://", "sqlite:///", "sqlite:///:memory:", "postgresql://host/db", "turnout.db"]
)
def test_addresses_other_than_a_file_are_refused(url: str) -> None:
    with pytest.raises(LedgerRefusedError, match=r"ledger\.url"):
        upgrade.path_of(url)
