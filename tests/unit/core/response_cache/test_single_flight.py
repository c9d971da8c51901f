"""Single flight's bookkeeping: one leader, a bounded number of followers, everybody released when it lands."""

from __future__ import annotations

from collections import Counter

import msgspec

from turnout.core.response_cache.key import CacheKey
from turnout.core.response_cache.single_flight import Flights, Role

KEY = CacheKey(
    tenant="acme", dialect="openai", path="/v1/chat/completions", kind="json", model="m", weight_version="",
    bundle_version="", knobs_hash=0, system=b"", tools=b"", format=b"", sampling=b"", history=b"", rest=b"", last=b"",
)  # fmt: skip


def test_one_leads_sixty_four_follow_and_the_rest_go_alone() -> None:
    flights: Flights[int] = Flights(64)
    roles = Counter(flights.join(KEY, number) for number in range(100))
    assert roles == {Role.LEAD: 1, Role.FOLLOW: 64, Role.ALONE: 35}
    assert flights.land(KEY) == list(range(1, 65))
    assert len(flights) == 0
    assert flights.join(KEY, 0) is Role.LEAD


def test_nobody_waits_for_another_tenants_answer() -> None:
    flights: Flights[int] = Flights(64)
    flights.join(KEY, 0)
    assert flights.join(msgspec.structs.replace(KEY, tenant="rival"), 1) is Role.LEAD


def test_a_follower_that_left_is_not_released() -> None:
    flights: Flights[int] = Flights(2)
    for number in range(3):
        flights.join(KEY, number)
    flights.leave(KEY, 1)
    flights.leave(KEY, 99)
    assert flights.join(KEY, 3) is Role.FOLLOW
    assert flights.land(KEY) == [2, 3]
    assert flights.land(KEY) == []
