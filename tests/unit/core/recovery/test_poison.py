"""The fence around requests that kill engines (resilience N8)."""

from __future__ import annotations

import pytest

from turnout.core.errors import ErrorKind
from turnout.core.recovery.poison import PoisonFence, is_death


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_only_lost_connections_are_deaths(kind: ErrorKind) -> None:
    assert is_death(kind) is (kind in {ErrorKind.CONNECTION_RESET, ErrorKind.STREAM_CUT})


def test_a_fenced_body_is_held_for_ten_minutes() -> None:
    fence = PoisonFence()
    assert not fence.holds(b"bad", 0.0)
    fence.fence(b"bad", 0.0)
    assert fence.holds(b"bad", 599.9)
    assert not fence.holds(b"good", 1.0)
    assert not fence.holds(b"bad", 600.0)
    assert len(fence) == 0


def test_the_fence_is_bounded() -> None:
    fence = PoisonFence()
    for number in range(2000):
        fence.fence(b"%d" % number, 0.0)
    assert len(fence) == 1024
    assert fence.holds(b"1999", 1.0)
    assert not fence.holds(b"0", 1.0)
