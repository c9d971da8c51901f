"""Which broken streams may be rescued, and how (resilience R1 to R4)."""

from __future__ import annotations

from typing import Any

import pytest

from turnout.core.options import Resume
from turnout.core.recovery.rescue import Broken, Way, ways

BOTH = (Way.CONTINUATION, Way.PREFIX_MATCH)
MATCH = (Way.PREFIX_MATCH,)


@pytest.mark.parametrize(
    ("facts", "continuation", "expected"),
    [
        ({}, True, BOTH),
        ({}, False, MATCH),
        ({"deterministic": False}, False, ()),
        ({"deterministic": False}, True, (Way.CONTINUATION,)),
        ({"structured": True}, True, MATCH),
        ({"reasoning_open": True}, True, MATCH),
        ({"chat": False}, True, MATCH),
        ({"choices": 2}, True, ()),
        ({"tool_call_opened": True}, True, ()),
        ({"logprobs": True}, True, ()),
        ({"kept": False}, True, ()),
        ({"rescued_before": True}, True, ()),
    ],
)
def test_ways(facts: dict[str, Any], continuation: bool, expected: tuple[Way, ...]) -> None:  # noqa: FBT001
    assert ways(Broken(**{"deterministic": True, **facts}), Resume(), continuation=continuation) == expected


def test_it_can_be_switched_off() -> None:
    assert ways(Broken(deterministic=True), Resume(scope="off"), continuation=True) == ()


def test_requests_that_do_not_repeat_themselves_may_be_tried_when_configured() -> None:
    assert ways(Broken(), Resume(require_deterministic=False), continuation=False) == MATCH
