"""The newest completed turn of each session, as pins are rebuilt from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from turnout.core.facts import CallFact, RouteKey
from turnout.ledger import queries
from turnout.ledger.backend import Turn
from turnout.ledger.store import Store
from turnout.ledger.turns import recent_turns

NOW_MS = 1_700_000_000_000


def test_the_newest_completed_turn_of_each_session_and_knobs(
    store: Store, database: Path, call: Callable[..., CallFact]
) -> None:
    def said(number: int, session: str | None, **fields: object) -> CallFact:
        given: dict[str, object] = {"knobs_hash": "00ff", "selected_model": "big", "tokens_in": number, **fields}
        given.setdefault("ended_at_ms", NOW_MS + number)
        return call(number, session_id=session, **given)

    route = RouteKey("anthropic", "small", "")
    store.write(
        [
            said(1, "s"),
            said(2, "s", selected_model="small", route=route),
            said(3, "s", outcome="upstream_timeout", cls="upstream"),
            said(4, "s", knobs_hash="00aa"),
            said(5, "named", knobs_hash=""),
            said(6, None),
            said(7, "u-1", user_id="u-1"),
            said(8, "s", tenant="other"),
            said(9, "old", ended_at_ms=NOW_MS - 10),
        ]
    )
    found = recent_turns(f"sqlite:///{database}", NOW_MS)
    assert [(one.tenant, one.session, one.knobs_hash, one.model) for one in found] == [
        ("other", "s", "00ff", "big"),
        ("acme", "s", "00aa", "big"),
        ("acme", "s", "00ff", "small"),
    ]
    assert found[2] == Turn("acme", "s", "00ff", "small", "anthropic", 2, NOW_MS + 2)
    assert len(recent_turns(f"sqlite:///{database}", NOW_MS, most=2)) == 2


def test_without_a_database_there_is_an_error_to_fail_open_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'none.db'}"
    with pytest.raises(queries.errors(url)):
        recent_turns(url, 0)
