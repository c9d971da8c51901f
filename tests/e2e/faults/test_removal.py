"""Endpoints that are removed, replaced or left alone by a reload: what runs on them, and what is remembered (I3, B10)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from turnout.core import options

if TYPE_CHECKING:
    from tests.support.router import Router

Routers = Callable[..., "Router"]
MODES = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
PATIENT = {"stall_s": 500.0, "first_token_s": 500.0, "first_token_failover_s": 500.0, "response_min_s": 500.0}
PATIENT |= {"response_unknown_s": 500.0, "response_max_s": 500.0}


def reloaded(up: Router, **changed: object) -> None:
    """Let the router read a configuration that differs in these sections."""
    wanted = msgspec.structs.replace(up.config, **changed)
    up.app._reread = lambda: wanted
    up.call(up.app.reload)


def house(router: Routers, wire: Any, scale: float, *engines: Any, **tables: Any) -> Router:
    """The first engine is asked first, the others when it cannot serve."""
    table = [
        {"name": f"e{number}", "url": engine.url, "models": [wire.MODEL], "standby": number > 1}
        for number, engine in enumerate(engines, 1)
    ]
    probe = {"interval_s": 2 * scale, "timeout_s": 60.0}  # a machine that stands still is no engine that does
    return router(endpoint=table, probe=probe, **{"timeout": PATIENT, **tables})


def remove(up: Router, name: str) -> Any:
    """Take an endpoint out of the configuration; returns what it was."""
    left = up.app.gateway.fleet.endpoints[name]
    reloaded(up, endpoint=[one for one in up.config.endpoint if one.name != name])
    assert name not in up.app.gateway.fleet.endpoints
    return left


def hang_up(up: Router, engine: Any) -> None:
    """Close an engine's port and its idle connections; what it has begun stays open and silent."""
    up.call(engine._server.close)
    for connection in [c for c in engine.open if c._current is None or c._current.line.startswith(b"GET")]:
        up.call(connection.transport.abort)


def says(wire: Any, *words: str) -> list[bytes]:
    return [*map(wire.event, words), wire.event(finish="stop"), wire.USAGE, wire.DONE]


def halves(wire: Any, *, stream: bool) -> tuple[list[Any], list[Any]]:
    """The script of an answer, before its first byte for a whole one, behind its first output event for a stream."""
    if not stream:
        return [], [wire.answer()]
    events = [wire.chunk(event) for event in says(wire, "The ", "fox")]
    return [wire.STREAM_HEAD, events[0]], [*events[1:], b"0\r\n\r\n"]


def begin(up: Router, wire: Any, *, stream: bool) -> Any:
    """Ask, and let the answer come as far as it comes by itself."""
    client = up.client()
    client.send(up.request(wire.chat(stream=stream, temperature=0, max_tokens=64)))
    if stream:
        client.buffer = client.read(b"The ") + client.buffer
    return client


@MODES
def test_I3_what_runs_on_a_removed_endpoint_runs_on_while_its_process_lives(
    stream: bool,  # noqa: FBT001 - a parameter
    router: Routers,
    script_engine: Any,
    wire: Any,
    scale: float,
    rests: Any,
) -> None:
    """However long it is silent, and whatever happens to others: it answers probes, so its answer will come."""
    gate = wire.Gate()
    first, rest = halves(wire, stream=stream)
    engine, other, third = script_engine([*first, gate, *rest]), script_engine(), script_engine()
    up = house(router, wire, scale, engine, other, third)
    client = begin(up, wire, stream=stream)
    assert up.eventually(gate.reached.is_set)
    left = remove(up, "e1")
    hang_up(up, third)
    assert up.eventually(lambda: up.app.gateway.fleet.endpoints["e3"].probe_failing, 60.0)
    asked = len(engine.probes)
    assert up.eventually(lambda: len(engine.probes) > asked + 2, 60.0)
    assert left.in_flight == 1
    gate.open()
    answered = client.response()
    assert (answered.status, answered.whole, answered.header(b"x-turnout-endpoint")) == (200, True, b"e1")
    assert up.records.fact().outcome == "completed"
    assert (len(up.records.fact().attempts), other.requests) == (1, [])
    assert up.eventually(lambda: left.in_flight == left.pending_prefill_tokens == left.active_tokens == 0)
    assert rests(up)
    up.ask(wire.chat())
    assert len(engine.requests) == 1  # nothing new reaches it


@MODES
def test_I3_a_connection_that_breaks_after_the_removal_is_a_failure_as_any_other(
    stream: bool,  # noqa: FBT001 - a parameter
    router: Routers,
    script_engine: Any,
    wire: Any,
    scale: float,
    rests: Any,
) -> None:
    """Before the commit point the next attempt, after it the rescue (§5)."""
    gate = wire.Gate()
    engine = script_engine([*halves(wire, stream=stream)[0], gate, wire.Cut(reset=True)])
    good = wire.stream(*says(wire, "The ", "fox")) if stream else [wire.answer()]
    up = house(router, wire, scale, engine, script_engine(good))
    client = begin(up, wire, stream=stream)
    assert up.eventually(gate.reached.is_set)
    left = remove(up, "e1")
    gate.open()
    answered = client.response()
    assert (answered.status, answered.whole) == (200, True)
    assert (answered.body.count(b"The "), answered.body.count(b"fox")) == ((1, 1) if stream else (0, 0))
    fact = up.records.fact()
    assert [a.error_kind for a in fact.attempts] == ["stream_cut" if stream else "connection_reset", ""]
    assert (fact.outcome, fact.resumed, left.in_flight) == ("completed", stream, 0)
    assert rests(up)


@MODES
def test_I3_nobody_waits_for_a_removed_process_that_is_gone(
    stream: bool,  # noqa: FBT001 - a parameter
    router: Routers,
    script_engine: Any,
    wire: Any,
    scale: float,
    rests: Any,
) -> None:
    """T86: it deregistered and closed its port, and leaves what is open without a word. No time-out is near."""
    engine = script_engine([*halves(wire, stream=stream)[0], wire.Gate()])
    good = wire.stream(*says(wire, "The ", "fox")) if stream else [wire.answer()]
    up = house(router, wire, scale, engine, script_engine(good))
    client = begin(up, wire, stream=stream)
    engine.request()
    left = remove(up, "e1")
    hang_up(up, engine)
    answered = client.response()
    assert (answered.status, answered.whole) == (200, True)
    fact = up.records.fact()
    assert [a.error_kind for a in fact.attempts] == ["endpoint_gone", ""]
    assert (fact.outcome, left.in_flight) == ("completed", 0)
    assert left.breaker.state == "closed"  # nobody's fault
    assert rests(up)


@MODES
def test_I3_nobody_waits_for_the_life_before_a_restart(
    stream: bool,  # noqa: FBT001 - a parameter
    router: Routers,
    script_engine: Any,
    wire: Any,
    scale: float,
    rests: Any,
) -> None:
    """Its counters went back, so the process that was asked has ended, whatever the connection looks like."""
    engine = script_engine([*halves(wire, stream=stream)[0], wire.Gate()])
    good = wire.stream(*says(wire, "The ", "fox")) if stream else [wire.answer()]
    up = house(router, wire, scale, engine, script_engine(good))
    client = begin(up, wire, stream=stream)
    engine.request()
    fleet = up.app.gateway.fleet
    old = fleet.endpoints["e1"]
    up.call(lambda: fleet.restarted(old, up.app.gateway.clock()))
    answered = client.response()
    assert (answered.status, answered.whole) == (200, True)
    assert [a.error_kind for a in up.records.fact().attempts] == ["endpoint_gone", ""]
    new = fleet.endpoints["e1"]
    assert new is not old
    assert (old.in_flight, new.in_flight, new.unreachable) == (0, 0, False)
    assert rests(up)


def test_I3_a_late_answer_to_a_client_that_left_reaches_nobody(
    router: Routers, script_engine: Any, wire: Any, scale: float, rests: Any
) -> None:
    gate = wire.Gate()
    engine = script_engine([gate, wire.answer()])
    up = house(router, wire, scale, engine, script_engine())
    client = begin(up, wire, stream=False)
    assert up.eventually(gate.reached.is_set)
    left = remove(up, "e1")
    client.close()
    fact, asked = up.records.fact(), engine.request()
    gate.open()
    assert (fact.outcome, [a.error_kind for a in fact.attempts]) == ("client_gone", ["cancelled"])
    assert up.eventually(asked.closed.is_set)
    assert (len(up.records.facts), left.in_flight) == (1, 0)
    assert rests(up)


# -- B10 --------------------------------------------------------------------------------------------------------------

Change = Callable[[Any], dict[str, Any]]


def _changed(section: str, **fields: object) -> Change:
    return lambda config: {section: msgspec.structs.replace(getattr(config, section), **fields)}


def _another(config: Any) -> dict[str, Any]:
    first, second = config.endpoint
    third = msgspec.structs.replace(second, name="e3")
    return {"endpoint": [third, msgspec.structs.replace(second, context_max=999), first]}


RELOADS: dict[str, Change] = {
    "nothing": lambda _: {},
    "a key": lambda config: {"key": [*config.key, options.Key(name="k2", tenant="t", digest="sha256:" + "0" * 64)]},
    "other endpoints": _another,
    "time-outs": _changed("timeout", total_s=500.0),
    "how long connecting may take": _changed("timeout", connect_s=4.0),
    "connections": _changed("pool", idle_max=7),
    "retries": _changed("retry", attempts=5),
    "ejections": _changed("ejection", pool_min=5),
    "admission": _changed("admission", queue_max=99),
}


def remembered(endpoint: Any, now: float) -> tuple[object, ...]:
    breaker = endpoint.breaker
    said = (breaker.state, breaker.openings, breaker.opens_total, breaker.reopen_at, breaker.results(now))
    return (*said, endpoint.incarnation, endpoint.attempts_total, endpoint.cooldown_until)


@pytest.mark.parametrize("change", RELOADS.values(), ids=RELOADS)
def test_B10_a_breaker_survives_reloads_that_leave_its_endpoint_as_it_was(
    change: Change, place: str, loop: Any, router: Routers, script_engine: Any, wire: Any
) -> None:
    failing = script_engine(wire.answer(b"{}", 500))
    up = router(failing, script_engine(), breaker={"open_s": 50.0, "open_max_s": 200.0}, probe={"interval_s": 600})
    assert [up.ask().status for _ in range(12)] == [200] * 12
    fleet, now = up.app.gateway.fleet, up.call(up.app.gateway.clock)
    endpoint = fleet.endpoints["e1"]
    before = remembered(endpoint, now)
    assert (before[:2], len(failing.requests)) == (("open", 1), 3)
    reloaded(up, **change(up.config))
    assert fleet.endpoints["e1"] is endpoint
    assert remembered(endpoint, now) == before
    assert [up.ask().status for _ in range(12)] == [200] * 12
    assert len(failing.requests) == 3
    if place == "virtual":  # half-open at the instant that was said; the next opening is the second in a row
        loop.run(asyncio.sleep(endpoint.breaker.reopen_at - loop.clock() + 0.1))
        assert [up.ask().status for _ in range(12)] == [200] * 12
        assert len(failing.requests) == 4
        assert endpoint.breaker.openings == 2
        assert 95.0 < endpoint.breaker.reopen_at - loop.clock() <= 100.0


def test_B10_a_breaker_dies_with_its_incarnation(router: Routers, script_engine: Any, wire: Any) -> None:
    gate = wire.Gate()
    failing = script_engine([gate, wire.answer(b"{}", 500)], wire.answer(b"{}", 500))
    up = house(router, wire, 1.0, failing, script_engine(), breaker={"open_s": 50.0})
    late = begin(up, wire, stream=False)
    assert up.eventually(gate.reached.is_set)
    assert [up.ask().status for _ in range(12)] == [200] * 12
    fleet = up.app.gateway.fleet
    old = fleet.endpoints["e1"]
    assert (old.breaker.state, len(failing.requests)) == ("open", 4)
    first, second = up.config.endpoint
    reloaded(up, endpoint=[msgspec.structs.replace(first, context_max=999), second])
    new = fleet.endpoints["e1"]
    assert (new.breaker.state, new.breaker.openings, new.breaker.opens_total) == ("closed", 0, 0)
    gate.open()
    assert late.response().status == 200
    assert new.breaker.results(up.call(up.app.gateway.clock)) == (0, 0)  # the old one's failure is the old one's
    assert [up.ask().status for _ in range(12)] == [200] * 12
    assert (new.breaker.state, new.breaker.openings, len(failing.requests)) == ("open", 1, 7)
