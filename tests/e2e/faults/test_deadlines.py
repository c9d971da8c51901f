"""The deadlines of resilience §1 with their default values, on virtual time: to the second."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.router import Router

pytestmark = pytest.mark.parametrize("place", ["virtual"])

Routers = Callable[..., "Router"]
SLACK_S = 0.3  # deadlines are looked at ten times a second


def table(model: str, silent: Any, good: Any | None = None) -> list[dict[str, Any]]:
    """The silent engine is asked first."""
    both = [("e1", silent), ("e2", good)] if good is not None else [("e1", silent)]
    return [{"name": name, "url": one.url, "models": [model], "standby": one is good} for name, one in both]


def attempts(up: Router) -> list[tuple[str, float]]:
    """Why each attempt ended, and after how many seconds; waits for the end of the exchange."""
    ends(up)
    return [(a.error_kind, (a.ended_at_ms - a.started_at_ms) / 1000) for a in up.records.fact().attempts]


def ends(up: Router) -> None:
    """Let half a second pass, again and again, until an exchange has ended."""
    for _ in range(1400):
        if up.records.facts:
            return
        up._loop.run(asyncio.sleep(0.5))
    pytest.fail("nothing ended within 700 s")


def took(seconds: float) -> Any:
    return pytest.approx(seconds + SLACK_S / 2, abs=SLACK_S)


@pytest.fixture
def hangs(script_engine: Any, wire: Any) -> Any:
    return script_engine([wire.Gate()])


def test_D2_the_last_possible_attempt_has_a_minute_for_its_first_token(hangs: Any, router: Routers, wire: Any) -> None:
    up = router(hangs)
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    assert attempts(up) == [("timeout_first_token", took(60.0))]


def test_D2a_ten_seconds_while_somebody_else_can_be_asked(
    hangs: Any, router: Routers, script_engine: Any, wire: Any
) -> None:
    good = script_engine(wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE))
    up = router(endpoint=table(wire.MODEL, hangs, good))
    answered = up.ask(wire.chat(stream=True))
    assert (answered.status, answered.whole) == (200, True)
    assert attempts(up)[0] == ("timeout_first_token", took(10.0))


def test_D2a_a_long_cold_prefill_is_waited_for(hangs: Any, router: Routers, script_engine: Any, wire: Any) -> None:
    """Three times what is predicted for it there: 16,000 tokens at 2,000 per second."""
    good = script_engine(wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE))
    up = router(endpoint=table(wire.MODEL, hangs, good), scheduling={"prior_prefill_tokens_per_s": 2000})
    client = up.client()
    client.send(up.request(wire.chat(stream=True, messages=[{"role": "user", "content": "abcd" * 16_000}])))
    found = attempts(up)[0]
    assert found[0] == "timeout_first_token"
    assert 20.0 < found[1] < 40.0


LIMITS: dict[str, tuple[dict[str, Any], float]] = {
    "without max_tokens": ({}, 90.0),
    "few": ({"max_tokens": 30}, 60.0),
    "some": ({"max_tokens": 3000}, 110.0),
    "many": ({"max_tokens": 30_000}, 300.0),
}


@pytest.mark.parametrize(("members", "seconds"), LIMITS.values(), ids=LIMITS)
def test_D3_a_whole_answer_has_the_time_that_its_length_takes(
    members: dict[str, Any], seconds: float, hangs: Any, router: Routers, script_engine: Any, wire: Any
) -> None:
    up = router(endpoint=table(wire.MODEL, hangs, script_engine()))
    client = up.client()
    client.send(up.request(wire.chat(**members)))
    assert attempts(up)[0] == ("timeout_response", took(seconds))


def test_D3_alone_there_is_the_total_deadline_only(hangs: Any, router: Routers, wire: Any) -> None:
    up = router(hangs)
    client = up.client()
    client.send(up.request(wire.chat(max_tokens=30)))
    assert attempts(up) == [("deadline", took(600.0))]
    assert up.records.fact().outcome == "deadline_exceeded"


def page(tokens: int) -> dict[bytes, bytes]:
    lines = [
        b"vllm:num_requests_running 1",
        b"vllm:num_requests_waiting 0",
        b"vllm:generation_tokens_total %d" % tokens,
    ]
    return {b"/metrics": b"\n".join(lines) + b"\n"}


@pytest.mark.parametrize("moves", [True, False])
def test_D3_an_engine_whose_counter_moves_has_five_minutes_and_is_not_to_blame(
    moves: bool,  # noqa: FBT001 - a parameter
    loop: Any,
    hangs: Any,
    router: Routers,
    script_engine: Any,
    wire: Any,
) -> None:
    hangs.pages = page(1)
    up = router(
        endpoint=table(wire.MODEL, hangs, script_engine()),
        load={"scrape_interval_ms": 1000, "idle_interval_ms": 1000},
        breaker={"consecutive": 1},
    )
    client = up.client()
    client.send(up.request(wire.chat(max_tokens=30)))
    for second in range(330):
        if moves:
            hangs.pages = page(second + 2)
        loop.run(asyncio.sleep(1.0))
    assert attempts(up)[0] == ("timeout_response", took(300.0 if moves else 60.0))
    assert up.app.gateway.fleet.endpoints["e1"].breaker.state == ("closed" if moves else "open")


@pytest.mark.parametrize(("asked_ms", "seconds"), [(None, 600.0), (20_000, 20.0)])
def test_D5_one_deadline_for_all_attempts(
    asked_ms: int | None, seconds: float, loop: Any, router: Routers, script_engine: Any, wire: Any
) -> None:
    """P4: not exceeded by more than a tenth of a second, however many attempts share it."""
    up = router(*[script_engine([wire.STREAM_HEAD, wire.chunk(wire.event("")), wire.Gate()]) for _ in range(2)],
                timeout={"first_token_failover_s": 12.0, "first_token_s": 595.0})  # fmt: skip
    client = up.client()
    lines = [b"x-turnout-timeout-ms: %d" % asked_ms] if asked_ms else []
    began = loop.clock()
    client.send(up.request(wire.chat(stream=True), *lines))
    ends(up)
    fact = up.records.fact()
    assert fact.outcome == "deadline_exceeded"
    assert seconds <= fact.e2e_ms / 1000 <= seconds + 0.2
    assert loop.clock() - began < seconds + 1.0
    assert len(fact.attempts) == 2


def test_D6_the_wait_for_a_place_ends_after_half_a_minute(hangs: Any, router: Routers, wire: Any) -> None:
    up = router(endpoint=[{"name": "e1", "url": hangs.url, "models": [wire.MODEL], "max_in_flight": 1}])
    first, second = up.client(), up.client()
    first.send(up.request(wire.chat()))
    hangs.request()
    second.send(up.request(wire.chat()))
    answered = second.response()
    assert (answered.status, answered.code) == (503, "queue_timeout")
    assert up.records.fact().e2e_ms / 1000 == took(30.0)


def test_O1_an_unreachable_endpoint_is_looked_for_after_a_fifth_of_a_second_one_and_three(
    loop: Any, router: Routers, script_engine: Any
) -> None:
    engine, other = script_engine(), script_engine()
    up = router(engine, other, probe={"interval_s": 60})
    assert up.eventually(lambda: len(engine.probes) >= 2)
    endpoint = up.app.gateway.fleet.endpoints["e1"]
    pool = up.app.gateway.upstreams["e1"].pool
    connects = pool.connects_total
    tried: list[float] = []
    engine.stop()
    assert [up.ask().status for _ in range(4)] == [200] * 4
    assert up.eventually(lambda: endpoint.unreachable)
    for _ in range(600):
        if pool.connects_total > connects:
            connects = pool.connects_total
            tried.append(loop.clock())
        loop.run(asyncio.sleep(0.01))
    gaps = [round(two - one, 1) for one, two in itertools.pairwise(tried)]
    assert gaps[:4] == [0.2, 0.2, 1.0, 3.0]


def test_O4_probes_come_every_two_seconds_and_three_that_fail_take_an_idle_endpoint_out(
    loop: Any, router: Routers, script_engine: Any, wire: Any
) -> None:
    """F03: an engine that accepts and says nothing is noticed by its probes; when it answers, it is back, slowly."""
    engine, other = script_engine(), script_engine()
    up = router(engine, other)
    assert up.eventually(lambda: len(engine.probes) >= 2)
    before, began = len(engine.probes), loop.clock()
    loop.run(asyncio.sleep(40.0))
    assert 16 <= len(engine.probes) - before <= 25  # 2 s ± 20 %
    engine.answers_probes = False
    began = loop.clock()
    endpoint = up.app.gateway.fleet.endpoints["e1"]
    assert up.eventually(lambda: endpoint.probe_failing, 15.0)
    assert 3.0 < loop.clock() - began < 10.5
    seen = len(engine.requests)
    assert [up.ask().status for _ in range(10)] == [200] * 10
    assert len(engine.requests) == seen
    engine.answers_probes = True
    assert up.eventually(lambda: not endpoint.probe_failing, 5.0)
    assert up.ask(wire.chat()).status == 200


def test_B8_what_becomes_of_an_endpoint_is_told_once_however_many_requests_notice(
    loop: Any, router: Routers, script_engine: Any, wire: Any
) -> None:
    failing, other = script_engine(wire.answer(b"{}", 500)), script_engine()
    up = router(failing, other)
    told: list[tuple[object, ...]] = []
    up.call(lambda: setattr(up.app.gateway.recovery.health, "tell", lambda name, f: told.append((name, *f.values()))))
    assert [up.ask().status for _ in range(20)] == [200] * 20
    loop.run(asyncio.sleep(1.0))
    assert told == [("endpoint_changed", "e1", "online", "breaker_open")]
    failing.says(wire.answer())
    loop.run(asyncio.sleep(5.0))
    assert [up.ask().status for _ in range(40)] == [200] * 40
    loop.run(asyncio.sleep(1.0))
    assert told[-1] == ("endpoint_changed", "e1", told[-1][2], "online")
    assert len(told) <= 3
    refusing = script_engine(wire.answer(b"{}", 401))
    asked = router(refusing, other)
    up.call(
        lambda: setattr(asked.app.gateway.recovery.health, "tell", lambda name, f: told.append((name, *f.values())))
    )
    assert [asked.ask().status for _ in range(10)] == [200] * 10
    loop.run(asyncio.sleep(1.0))
    assert len(refusing.requests) == 1
    assert told[-1] == ("endpoint_changed", "e1", "online", "credential_refused")
    loop.run(asyncio.sleep(60.0))
    assert told[-1] == ("endpoint_changed", "e1", "credential_refused", "online")
