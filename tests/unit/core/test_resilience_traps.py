"""Traps of the field as tests of their names: breakers, retries, quarantine (traps T49 to T81)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from turnout.core import options
from turnout.core.errors import RETRY, ErrorKind, Outcome
from turnout.core.fleet.breaker import State
from turnout.core.lifecycle import GiveUp, Open

Make = Callable[..., Any]


@pytest.mark.parametrize("ending", ["bad_request 400", "bad_request 413", "bad_request 422", "cancelled"])
def test_client_fault_opens_no_breaker(scene: Make, ending: str) -> None:
    """T49: a hundred faults of one tenant close no door for the others."""
    play = scene("a", "b")
    for _ in range(100):
        play.exchange = play.another()
        play.happens("begin", 100.0)
        if ending == "cancelled":
            play.happens("closes client_gone", 100.1)
        else:
            play.happens(f"fails {ending}", 100.1)
            play.happens("closes upstream_answered", 100.1)
    assert [play.endpoint(name).breaker.state for name in "ab"] == [State.CLOSED, State.CLOSED]
    assert all(play.endpoint(name).breaker.plain for name in "ab")


def test_bt5_every_path_closes_it_after_success(scene: Make) -> None:
    """T70, BT5: the exchange itself reports the success that closes a half-open breaker."""
    play = scene("a")
    play.play((90.0, "opens a", "-"), (100.0, "begin", "open a first"), (100.1, "completed", "-"))
    assert play.endpoint("a").breaker.state is State.CLOSED


def test_bt8_a_failed_refresh_empties_nothing(scene: Make) -> None:
    """T70, BT8: probes that fail take an endpoint out of scheduling, never out of the inventory."""
    play = scene("a", "b")
    for _ in range(10):
        play.fleet.on_probe(play.endpoint("a"), 100.0, ok=False)
    assert set(play.fleet.endpoints) == {"a", "b"}
    assert play.fleet.models == ["m"]


def test_bt9_all_candidates_filtered_is_relaxed_as_written(scene: Make) -> None:
    """T70, BT9: when every breaker is open, one request at a time tries anyway; the others wait or are told."""
    play = scene("a", "b", admission=options.Admission())
    for name in "ab":
        play.happens(f"opens {name}", 100.0)
    kinds = [type(play.another().begin(100.1)).__name__ for _ in range(5)]
    assert kinds == ["Open", "Open", "Queued", "Queued", "Queued"]


def test_retry_loop_cannot_spin(scene: Make) -> None:
    """T74: whatever fails at once, the number of attempts is bounded, and every wait has a length."""
    for kind in ErrorKind:
        play = scene(*"abcdefgh")
        following = play.exchange.begin(100.0)
        now, rounds = 100.0, 0
        while not isinstance(following, GiveUp):
            rounds += 1
            assert rounds < 20, kind
            if isinstance(following, Open):
                following = play.exchange.attempt_failed(kind, now, died=False)
            else:
                assert following.until_s > now
                now = following.until_s
                following = play.exchange.wait_over(now)
        assert len(play.exchange.attempts) <= 3


def test_no_retry_multiplication(scene: Make) -> None:
    """T76: with a fallback of its own, and an SDK that comes back twice, an engine sees no more than N1 allows."""
    seen, most = 0, options.Retry()
    for _ in range(3):
        play = scene("a", "z model=n", fallback=("n",))
        following = play.exchange.begin(100.0)
        while isinstance(following, Open):
            seen += following.attempt.endpoint.name == "a"
            following = play.exchange.attempt_failed(ErrorKind.TIMEOUT_FIRST_TOKEN, 100.0)
        assert len(play.exchange.attempts) <= most.attempts
    assert seen <= 3 * most.attempts_per_model


def test_plain_400_never_fails_over(scene: Make) -> None:
    """T77."""
    scene("a", "b", "z model=n", fallback=("n",)).play(
        (100.0, "begin", "open a first"), (100.1, "fails bad_request 400", "give up upstream_answered")
    )
    assert not RETRY[ErrorKind.BAD_REQUEST].other


def test_dead_owner_gets_one_attempt(scene: Make) -> None:
    """T78: what one request learnt the next one knows."""
    play = scene("a", "b")
    play.play((100.0, "begin", "open a first"), (100.0, "fails connect_error", "open b other"))
    assert [play.next_picks(100.1) for _ in range(20)] == ["open b first"] * 20


def test_no_permanent_quarantine(scene: Make) -> None:
    """T81: every state that keeps traffic away has a way back without a restart."""
    ways_out: dict[str, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
        "unreachable": (
            lambda p: p.fleet.on_connect_failure(p.endpoint("a"), 100.0),
            lambda p: p.fleet.on_probe(p.endpoint("a"), 101.0, ok=True),
        ),
        "probe_failing": (
            lambda p: [p.fleet.on_probe(p.endpoint("a"), 100.0, ok=False) for _ in range(3)],
            lambda p: p.fleet.on_probe(p.endpoint("a"), 101.0, ok=True),
        ),
        "lost model": (lambda p: p.endpoint("a").lose("m"), lambda p: p.endpoint("a").listed()),
        "breaker": (lambda p: p.happens("opens a", 90.0), lambda _: None),
        "cooldown": (lambda p: setattr(p.endpoint("a"), "cooldown_until", 105.0), lambda _: None),
    }
    for name, (enter, leave) in ways_out.items():
        play = scene("a", "b")
        enter(play)
        leave(play)
        picks = set()
        for number in range(50):
            exchange = play.another()
            following = exchange.begin(140.0 + number)
            assert isinstance(following, Open)
            picks.add(following.attempt.endpoint.name)
            exchange.close(Outcome.CLIENT_GONE, 140.0 + number)
            play.endpoint("b").in_flight = 1  # the other one is busier: a is picked as soon as it may be
        assert "a" in picks, name
