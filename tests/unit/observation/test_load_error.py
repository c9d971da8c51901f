"""How far the reckoned load is off when the next report comes (scheduling §4, §6)."""

from __future__ import annotations

import pytest

from turnout.core import options
from turnout.core.fleet.registry import Fleet
from turnout.core.fleet.report import Report
from turnout.observation.scraper import estimate_error


@pytest.mark.parametrize(
    ("before", "opened", "after", "error"),
    [
        ((3, 1), 0, (3, 1), 0.0),
        ((3, 1), 2, (4, 2), 0.0),  # our own dispatches since then are known
        ((3, 1), 0, (9, 1), 6.0),  # those of other routers are not
        ((3, 1), 0, (0, 0), 4.0),
        ((None, None), 2, (4, 2), None),
        ((3, 1), 2, (4, None), None),
    ],
)
def test_error_is_what_own_dispatches_do_not_explain(
    before: tuple[int | None, int | None], opened: int, after: tuple[int | None, int | None], error: float | None
) -> None:
    fleet = Fleet(options.Scheduling(), options.Prefix(), options.Breaker())
    endpoint = fleet.add(options.Endpoint(name="a", url="http://127.0.0.1:1", models=["m"]), 0.0)
    endpoint.reported(1.0, 0, *before)
    endpoint.in_flight = opened
    report = Report(running=after[0], waiting=after[1])
    assert estimate_error(endpoint, endpoint.sent(2.0), report) == error
