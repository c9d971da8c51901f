"""Facts, a clock and an opened store for the ledger's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from turnout.core.facts import AttemptFact, CallFact, RouteKey
from turnout.ledger import upgrade
from turnout.ledger.sqlite import open_store
from turnout.ledger.store import Store

NOW_MS = 1_794_000_000_000
ROUTE = RouteKey("", "model-a", "replica-1")


class Clock:
    """Milliseconds that stand still until a test moves them."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


class Events:
    """Collects what an operator would see."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, object]]] = []

    def __call__(self, name: str, /, **fields: object) -> None:
        self.seen.append((name, fields))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.seen]


def _attempt(**fields: Any) -> AttemptFact:
    given: dict[str, Any] = {
        "attempt_no": 1,
        "phase": "solo",
        "route": ROUTE,
        "kind": "first",
        "started_at_ms": NOW_MS - 100,
        "ended_at_ms": NOW_MS,
        "ok": True,
        "counted": True,
        "committed": True,
        "e2e_ms": 100,
        "ttft_ms": 20,
    }
    return AttemptFact(**{**given, **fields})


def _call(n: int = 0, **fields: Any) -> CallFact:
    given: dict[str, Any] = {
        "call_id": f"01JCALL{n:019d}",
        "request_id": f"req_{n}",
        "started_at_ms": NOW_MS - 100,
        "ended_at_ms": NOW_MS,
        "e2e_ms": 100,
        "tenant": "acme",
        "key_id": "batch",
        "dialect": "openai",
        "path": "/v1/chat/completions",
        "stream": True,
        "requested_model": "model-a",
        "outcome": "completed",
        "cls": "ok",
        "http_status": 200,
        "route": ROUTE,
        "attempts": (_attempt(),),
    }
    return CallFact(**{**given, **fields})


@pytest.fixture
def attempt() -> Callable[..., AttemptFact]:
    return _attempt


@pytest.fixture
def call() -> Callable[..., CallFact]:
    return _call


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "turnout.db"


@pytest.fixture
def store(database: Path, clock: Clock, events: Events) -> Iterator[Store]:
    upgrade.prepare(database, clock_ms=clock, on_event=events)
    opened = open_store(
        database, router_id="router-1", clock_ms=clock, retention_days=30, decisions_days=7, busy_timeout_s=0.01
    )
    yield opened
    opened.close()
