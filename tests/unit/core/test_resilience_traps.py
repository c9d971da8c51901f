"""Traps of the field as tests of their names: breakers, retries, quarantine (traps T49 to T81)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from turnout.core import options
from turnout.core.errors import RETRY, ErrorKind, Outcome
from turnout.core.fleet.breaker import State
from turnout.core.lifecycle import GiveUp, Open, Queued

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


def _half_open(scene: Make) -> Any:
    """Endpoint `a` alone, its breaker opened long ago and due to be tried; instant 100."""
    play = scene("a", "b context=1")
    play.happens("opens a", 90.0)
    return play


def _bt1(scene: Make) -> bool:
    """Every neutral end of the probing attempt gives the slot back: the next request probes."""
    for ending in ("bad_request 400", "rate_limit 429", "cancelled", "internal"):
        play = _half_open(scene)
        play.happens("begin", 100.0)
        if ending == "cancelled":
            play.happens("closes client_gone", 100.1)
        else:
            play.happens(f"fails {ending}", 100.1)
        if not play.endpoint("a").breaker.allow(170.0):
            return False
    return True


def _bt2(scene: Make) -> bool:
    """A thousand requests at half-open: one attempt."""
    play = _half_open(scene)
    opened = [play.another().begin(100.0) for _ in range(1000)]
    return sum(isinstance(one, Open) for one in opened) == 1


def _bt3(scene: Make) -> bool:
    """A hundred clients that leave count nowhere."""
    play = scene("a")
    for _ in range(100):
        play.exchange = play.another()
        play.happens("begin", 100.0)
        play.happens("closes client_gone", 100.0)
    return bool(play.endpoint("a").breaker.state is State.CLOSED and play.endpoint("a").breaker.plain)


def _after(scene: Make, *endings: str) -> State:
    """The breaker after these endings, each of a request of its own, on the only endpoint."""
    play = scene("a", attempts_per_model=1)
    for ending in endings:
        play.exchange = play.another()
        play.happens("begin", 100.0)
        play.happens(f"fails {ending}", 100.0)
        play.endpoint("a").cooldown_until = 0.0
    state: State = play.endpoint("a").breaker.state
    return state


def _bt4(scene: Make) -> bool:
    """A refusal for the rate neither trips nor clears it."""
    fault, slow_down = "server_error 500", "rate_limit 429"
    mixed = _after(scene, fault, fault, slow_down, fault)
    return mixed is State.OPEN and _after(scene, *[slow_down] * 100) is State.CLOSED


def _bt5(scene: Make) -> bool:
    """The success path has a caller: a complete answer closes it."""
    play = _half_open(scene)
    play.happens("begin", 100.0)
    play.happens("completed", 100.1)
    return bool(play.endpoint("a").breaker.state is State.CLOSED)


def _bt6(scene: Make) -> bool:
    """A malformed 2xx is no success."""
    return _after(scene, "server_error 500", "server_error 500", "bad_response 200") is State.OPEN


def _bt7(scene: Make) -> bool:
    """Fifty late failures move nothing."""
    play = scene("a", attempts_per_model=1)
    late = [play.another() for _ in range(50)]
    for exchange in late:
        exchange.begin(99.0)
    for exchange in late[:3]:
        exchange.attempt_failed(ErrorKind.SERVER_ERROR, 100.0, status=500)
    reopens = play.endpoint("a").breaker.reopen_at
    for exchange in late[3:]:
        exchange.attempt_failed(ErrorKind.SERVER_ERROR, 103.0, status=500)
    breaker = play.endpoint("a").breaker
    return bool(breaker.state is State.OPEN and breaker.reopen_at == reopens and breaker.opens_total == 1)


def _bt8(scene: Make) -> bool:
    """Probes that fail empty no inventory."""
    play = scene("a", "b")
    for _ in range(10):
        play.fleet.on_probe(play.endpoint("a"), 100.0, ok=False)
    return set(play.fleet.endpoints) == {"a", "b"} and play.fleet.models == ["m"]


def _bt9(scene: Make) -> bool:
    """All filtered: one at a time tries anyway."""
    play = scene("a", "b", admission=options.Admission())
    for name in "ab":
        play.happens(f"opens {name}", 100.0)
    return [type(play.another().begin(100.1)) for _ in range(4)] == [Open, Open, Queued, Queued]


NINE = {f"BT{n}": bug for n, bug in enumerate((_bt1, _bt2, _bt3, _bt4, _bt5, _bt6, _bt7, _bt8, _bt9), 1)}


@pytest.mark.parametrize("bug", NINE.values(), ids=NINE)
def test_nine_breaker_bugs(scene: Make, bug: Callable[[Make], bool]) -> None:
    """T70: BT1 to BT9 seen through the exchange; the breaker alone is tested beside its module."""
    assert bug(scene)


def test_dead_cheap_endpoints_hide_nobody(scene: Make) -> None:
    """T35: who cannot serve is dropped before anybody is preferred, and a client's fault makes no route worse."""
    names = [f"e{number:03}" for number in range(120)]
    play = scene(*names, "living")
    for number, name in enumerate(names):  # all of them idle, and first in every order
        endpoint = play.endpoint(name)
        if number % 3 == 0:
            endpoint.unreachable = True
        elif number % 3 == 1:
            endpoint.probe_failing = True
        else:
            play.happens(f"opens {name}", 100.0)
    play.endpoint("living").in_flight = 200
    assert play.next_picks(101.0) == "open living first"
    good = play.another()
    good.begin(101.0)
    good.attempt_failed(ErrorKind.BAD_REQUEST, 101.1, status=400)
    assert not good.attempts[0].counted
    assert play.next_picks(101.2) == "open living first"


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
