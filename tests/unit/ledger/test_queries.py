"""Statements mean the same to the driver and to SQLAlchemy, and a transaction is whole or nothing on both."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from turnout.ledger import connection, files, queries

DAY = {"tenant": "acme", "key_id": "k", "day_ms": 0, "spent_nusd": 1}
ALL = "SELECT tenant, day_ms FROM budgets ORDER BY day_ms"


@pytest.fixture(params=["driver", "sqlalchemy"])
def conn(request: pytest.FixtureRequest, store: Any, database: Path) -> Iterator[Any]:
    store.write([])
    if request.param == "driver":
        with closing(files.open_writing(database)) as opened:
            yield opened
        return
    engine = connection.writing_engine(database)
    with engine.connect() as through:
        yield through
    engine.dispose()


def test_rows_values_and_changes(conn: Any) -> None:
    with queries.transaction(conn):
        assert queries.first(conn, ALL) is None
        assert queries.value(conn, ALL) is None
        queries.insert(conn, "budgets", [DAY, {**DAY, "day_ms": 5}])
        assert [tuple(row) for row in queries.rows(conn, ALL)] == [("acme", 0), ("acme", 5)]
        assert tuple(queries.first(conn, ALL)) == ("acme", 0)
        assert queries.value(conn, "SELECT COUNT(*) FROM budgets WHERE day_ms >= :since", since=1) == 1
        assert queries.change(conn, "DELETE FROM budgets WHERE day_ms < :until", until=9) == 2
    assert not queries.on_server(conn)
    assert isinstance(queries.driver_of(conn), sqlite3.Connection)


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt])
def test_an_exception_takes_everything_back_and_the_next_transaction_begins(
    conn: Any, problem: type[BaseException]
) -> None:
    def fails() -> None:
        with queries.transaction(conn):
            queries.insert(conn, "budgets", [DAY])
            raise problem

    with pytest.raises(problem):
        fails()
    with queries.transaction(conn):
        assert queries.rows(conn, ALL) == []


def test_what_is_not_in_order_at_the_commit_is_taken_back(database: Path, store: Any) -> None:
    store.write([])
    with closing(files.open_writing(database)) as conn:
        conn.execute("PRAGMA defer_foreign_keys = ON")

        def breaks() -> None:
            with queries.transaction(conn):
                conn.execute("PRAGMA defer_foreign_keys = ON")
                conn.execute("INSERT INTO prices (version, provider, model) VALUES (99, '', 'm')")

        with pytest.raises(sqlite3.IntegrityError):
            breaks()
        assert not conn.in_transaction
        assert queries.rows(conn, "SELECT * FROM prices") == []


def test_a_reader_sees_one_state_and_changes_nothing(database: Path, store: Any, call: Callable[..., Any]) -> None:
    store.write([call(0)])
    url, count = f"sqlite:///{database}", "SELECT COUNT(*) FROM calls"
    with queries.reading(url) as conn:
        assert queries.value(conn, count) == 1
        store.write([call(1)])
        assert queries.value(conn, count) == 1
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            queries.change(conn, "DELETE FROM calls")
    with queries.changing(url) as conn:
        assert queries.change(conn, "DELETE FROM decisions") == 0
        assert queries.value(conn, count) == 2
