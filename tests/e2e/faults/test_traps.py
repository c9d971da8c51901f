"""Traps of the field on real sockets and on virtual time: what is counted, who is isolated, what outlives a reload."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from tests.support.router import Router

Routers = Callable[..., "Router"]
NEVER_OPEN = {"breaker": {"consecutive": 10**6, "ratio_min": 10**6}}


def rerouted(up: Router) -> int:
    found: int = up.app.gateway.recovery.counted()["rerouted_total"]
    return found


def test_rerouted_means_resent(router: Routers, script_engine: Any, wire: Any) -> None:
    """T18: neither a refusal, nor a repetition, nor the last failure moves the counter; an attempt elsewhere does."""
    one, two = script_engine(), script_engine()
    up = router(one, two, **NEVER_OPEN, retry={"attempts_per_model": 2})
    one.scripts = two.scripts = [[wire.answer(b"{}", 400)]]
    assert (up.ask().status, rerouted(up)) == (400, 0)
    one.scripts = two.scripts = [[wire.answer(b"{}", 500)], [wire.answer()]]
    assert (up.ask().status, rerouted(up)) == (200, 1)
    one.scripts = two.scripts = [[wire.answer(b"{}", 500)]]
    assert (up.ask().status, rerouted(up)) == (500, 2)  # one attempt on each, and no third
    alone = router(script_engine([wire.answer(b"{}", 500)], [wire.answer()]), **NEVER_OPEN)
    assert (alone.ask().status, rerouted(alone)) == (200, 0)
    assert [a.kind for a in alone.records.fact().attempts] == ["first", "same"]


def test_hung_endpoint_is_isolated(
    place: str, router: Routers, script_engine: Any, wire: Any, scale: float, rests: Any
) -> None:
    """T79, F03: who is sent elsewhere does not wait for the one that hangs, and soon nobody is sent there."""
    stream = wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE)
    hung = script_engine([wire.Gate()])
    up = router(hung, *[script_engine(stream) for _ in range(3)], timeout={"first_token_failover_s": 10 * scale})
    took: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(40):
        began = up.call(up.app.gateway.clock)
        answered = up.ask(wire.chat(stream=True))
        assert (answered.status, answered.whole) == (200, True)
        delayed = answered.header(b"x-turnout-attempts") != b"1"
        took[delayed].append(up.call(up.app.gateway.clock) - began)
    assert len(hung.requests) <= 3  # then its breaker is open
    assert all(each >= 9 * scale for each in took[True])
    if place == "virtual":
        assert max(took[False]) < 0.1
        assert max(took[True], default=0.0) < 12
    assert rests(up)


def test_probes_survive_reload(router: Routers, script_engine: Any) -> None:
    """T82: after an exception of its own and after a configuration change an endpoint is still asked."""
    up = router(engine := script_engine(), probe={"interval_s": 0.1, "timeout_s": 0.5})

    def asked() -> int:
        return len(engine.probes)

    assert up.eventually(lambda: asked() > 1)
    reach = up.call(lambda: up.app.gateway.upstreams.pop("e1"))  # the next probe trips over it
    before = asked()
    assert not up.eventually(lambda: asked() > before + 1, 0.5)
    up.call(lambda: up.app.gateway.upstreams.update(e1=reach))
    assert up.eventually(lambda: asked() > before + 1)
    changed = msgspec.structs.replace(
        up.config, endpoint=[msgspec.structs.replace(up.config.endpoint[0], context_max=999)]
    )
    up.app._reread = lambda: changed
    up.call(up.app.reload)
    assert up.app.gateway.fleet.endpoints["e1"].context_max == 999
    before = asked()
    assert up.eventually(lambda: asked() > before + 1)
    assert up.ask().status == 200


def test_busy_is_not_dead(place: str, router: Routers, script_engine: Any, wire: Any) -> None:
    """T80, F44: probes that time out while bytes come mean nothing; without bytes they do, whatever /health says."""
    gates = [wire.Gate() for _ in range(40)]
    steps = [step for gate in gates for step in (gate, wire.chunk(wire.event("a")))]
    engine = script_engine([wire.STREAM_HEAD, *steps, wire.Gate()])
    timeout = {"stall_s": 2.0 if place == "virtual" else 60.0}
    up = router(engine, probe={"interval_s": 0.05, "timeout_s": 0.05, "failures": 3}, timeout=timeout)
    endpoint = up.app.gateway.fleet.endpoints["e1"]
    assert up.eventually(lambda: len(engine.probes) >= 2)
    engine.answers_probes = False
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    for gate in gates:
        gate.open()
        client.read(wire.event("a"))
        assert not up.eventually(lambda: endpoint.probe_failing or endpoint.unreachable, 0.03)
    if up.app.gateway.clock is not time.monotonic:  # bytes speak for an engine for five seconds
        assert up.eventually(lambda: endpoint.probe_failing, 8.0)


def test_F45_an_engine_that_lies_about_its_health_is_out_after_three_stalls(
    router: Routers, script_engine: Any, wire: Any, scale: float
) -> None:
    stream = wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE)
    zombie, good = script_engine([wire.STREAM_HEAD, wire.chunk(wire.event("")), wire.Gate()]), script_engine(stream)
    up = router(zombie, good, timeout={"first_token_failover_s": 10 * scale}, probe={"interval_s": 0.1})
    for _ in range(12):
        assert up.ask(wire.chat(stream=True)).whole
    assert len(zombie.requests) == 3
    assert up.app.gateway.fleet.endpoints["e1"].breaker.state == "open"
    assert not up.app.gateway.fleet.endpoints["e1"].probe_failing
