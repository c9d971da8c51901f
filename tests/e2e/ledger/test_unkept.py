"""What a router does that can record nothing: it says so, and refuses where it is told to."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("on_failure", "filled", "status", "ready"),
    [
        ("serve", 0.0, 200, "ready"),
        ("serve", 0.9, 200, "degraded"),
        ("reject", 0.0, 200, "ready"),
        ("reject", 0.7, 200, "degraded"),
        ("reject", 0.9, 503, "degraded"),
    ],
)
def test_a_router_that_can_record_nothing_says_so_and_rejects_if_told(
    router: Any, script_engine: Any, on_failure: str, filled: float, status: int, ready: str
) -> None:
    one = router(script_engine(), ledger={"on_failure": on_failure})
    one.records.filled = filled
    seen = one.ask()
    assert seen.status == status
    outcome = "completed" if status == 200 else "authority_unavailable"
    assert (seen.code if status == 503 else "completed", one.records.fact(0).outcome) == (outcome, outcome)
    assert one.ask(None, path=b"/ready", method=b"GET").json == {"status": ready}
