"""Every accepted request is known to the ledger before its first attempt, and ends there exactly once."""

from __future__ import annotations

from typing import Any

import pytest


def test_ledger_hears_of_a_request_before_the_engine_does(router: Any, script_engine: Any, wire: Any) -> None:
    heard: list[int] = []

    def script(_: Any) -> list[bytes]:
        heard.append(len(one.records.opened))
        return [wire.answer()]

    one = router(script_engine(script))
    one.ask(None, b"x-turnout-session: s-1", b"x-request-id: mine")
    fact = one.records.fact()
    assert heard == [1]
    opened = one.records.opened[0]
    assert (opened.call_id, opened.request_id, opened.session_id) == (fact.call_id, "mine", "s-1")
    assert (opened.tenant, opened.key_id) == (fact.tenant, fact.key_id)
    assert (opened.path, opened.dialect, opened.stream) == (fact.path, fact.dialect, fact.stream)
    assert opened.selected_model == opened.requested_model == one.model
    assert opened.started_at_ms == fact.started_at_ms


@pytest.mark.parametrize("model", ["model-a", "unknown"])
def test_every_opened_call_ends_in_one_fact(router: Any, script_engine: Any, wire: Any, model: str) -> None:
    one = router(script_engine())
    for _ in range(2):
        one.ask(wire.chat(model=model))
    one.records.fact(1)
    assert [call.call_id for call in one.records.opened] == [fact.call_id for fact in one.records.facts]


def test_refused_request_is_not_accepted(router: Any, script_engine: Any) -> None:
    one = router(script_engine())
    assert one.ask(b"{").status == 400
    assert one.records.opened == []
