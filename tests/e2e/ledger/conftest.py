"""A PostgreSQL server for these tests, and the facts of the ledger's unit tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_TESTS = Path(__file__).parents[2]


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_facts = _load("ledger_facts", _TESTS / "unit" / "ledger" / "conftest.py")
call, attempt, clock, events = _facts.call, _facts.attempt, _facts.clock, _facts.events


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A real server; a machine without one fails these tests, it does not skip them."""
    local = _load("local_postgres", _TESTS / "local_postgres.py")
    server = local.LocalPostgres(local.memory_directory())
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def server_url(postgres: Any) -> str:
    url: str = postgres.new_database()
    return url


@pytest.fixture(scope="session")
def upgraded_template(postgres: Any) -> str:
    """The name of a database of the newest schema: copying it is ten times faster than migrating anew."""
    from turnout.ledger import server_upgrade

    url: str = postgres.new_database()
    server_upgrade.run(url)
    return url.rpartition("/")[2]


@pytest.fixture
def upgraded_url(postgres: Any, upgraded_template: str) -> str:
    url: str = postgres.new_database(upgraded_template)
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def any_store(request: Any, tmp_path: Path, clock: Any) -> Iterator[tuple[Any, str]]:
    """An empty store of each kind with its address."""
    from turnout.ledger import postgres, sqlite, upgrade

    given: dict[str, Any] = {"router_id": "r", "clock_ms": clock, "retention_days": 30, "decisions_days": 7}
    if request.param == "sqlite":
        path = tmp_path / "turnout.db"
        upgrade.prepare(path, clock_ms=clock, on_event=lambda name, /, **fields: None)
        store, url = sqlite.open_store(path, **given), f"sqlite:///{path}"
    else:
        url = request.getfixturevalue("upgraded_url")
        store = postgres.open_store(url, **given)
    yield store, url
    store.close()


Make = Callable[..., Any]
