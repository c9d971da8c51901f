"""The metrics page after a known history: every figure that the gateway and its connections feed (ledger §10)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.engine import Engine
    from tests.support.router import Router

Routers = Callable[..., "Router"]
Engines = Callable[..., "Engine"]
ADMIN = {"server": {"admin_listen": "127.0.0.1:0"}}


def figures(up: Router) -> dict[str, float]:
    """Every sample of the page, under its name with labels."""
    page = up.ask(method=b"GET", path=b"/metrics", port=up.admin_port)
    assert page.status == 200
    found = re.findall(r"^(turnout_[^ ]+) (\S+)$", page.body.decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_connections_to_engines_are_counted_as_opened_kept_and_failed(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    gone = script_engine()
    gone.stop()
    # no probe may come between: the counts are exact
    up = router(
        script_engine(), gone, **ADMIN, probe={"interval_s": 600}, scheduling={"policy": "round_robin"},
        pool={"idle_s": 60},
    )  # fmt: skip
    assert up.eventually(lambda: up.app.gateway.fleet.endpoints["e2"].unreachable)
    pool, lost = (up.app.gateway.upstreams[name].pool for name in ("e1", "e2"))
    opened, kept, failed = up.call(lambda: (pool.connects_total, pool.reuses_total, lost.connect_failures_total))
    for _ in range(5):
        assert up.ask(wire.chat()).status == 200
    seen = figures(up)
    assert up.call(lambda: pool.connects_total) == opened
    assert up.call(lambda: pool.reuses_total) == kept + 5
    assert seen["turnout_upstream_connects_total"] == opened + lost.connects_total
    assert seen["turnout_upstream_reuses_total"] == kept + 5
    assert seen["turnout_upstream_connect_failures_total"] >= failed >= 1


def test_events_of_streams_are_counted_by_what_happened_to_them(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    gate = wire.Gate()
    events = [wire.event("a"), b"data: oops\n\n", wire.event("x" * 3000), wire.event(finish="stop"), wire.DONE]
    script = wire.stream(*events)
    script.insert(1, gate)
    engine = script_engine(script)
    up = router(engine, **ADMIN, relay={"event_max_bytes": 1000, "keepalive_s": 0.1})
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    client.read(b": keep-alive\n\n")
    gate.open()
    client.read(b"0\r\n\r\n")
    assert up.records.fact().outcome == "completed"
    seen = figures(up)
    assert seen["turnout_relay_events_dropped_total"] == 1
    assert seen["turnout_relay_events_oversized_total"] <= 1  # a whole event in one read is looked into, however large
    assert 3 <= seen["turnout_relay_events_inspected_total"] <= 5
    assert seen["turnout_relay_keepalives_total"] >= 1


def test_exchanges_that_wait_for_the_retry_budget_are_the_queue(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    one, two = script_engine(), script_engine()
    one.scripts = two.scripts = [[wire.answer(b"{}", 500)], [wire.answer()]]
    up = router(one, two, **ADMIN, retry={"budget_ratio": 0.0, "budget_floor_per_s": 0.1})
    assert up.ask().status == 200  # with the only extra attempt of these ten seconds
    client = up.client()
    one.scripts = two.scripts = [[wire.answer(b"{}", 500)], [wire.answer()]]
    client.send(up.request())
    assert up.eventually(lambda: any(r.exchange.queued_at_s for r in up.app.gateway.runs if r.exchange))
    seen = figures(up)
    assert seen['turnout_queue_depth{model="model-a"}'] == 1
    assert seen["turnout_retry_budget_exhausted_total"] >= 1


def test_the_prefix_index_shows_size_evictions_and_purges(router: Routers, script_engine: Engines, wire: Any) -> None:
    up = router(script_engine(), **ADMIN)
    long = [{"role": "user", "content": "a" * 4000}]
    assert up.ask(wire.chat(messages=long)).status == 200
    index = up.app.gateway.fleet.index
    seen = figures(up)
    assert seen["turnout_prefix_entries"] == index.entries > 10
    assert seen["turnout_prefix_bytes"] == index.memory_bytes > 100 * 10
    assert seen["turnout_prefix_slots"] == 1
    assert seen['turnout_prefix_evictions_total{reason="ttl"}'] == 0
    assert seen["turnout_prefix_purges_total"] == 0


@pytest.mark.parametrize("batch", [1, 4])
def test_tokens_seen_are_counted_event_by_event_however_they_arrive(
    batch: int, router: Routers, script_engine: Engines, wire: Any
) -> None:
    first, rest = wire.event("a"), [wire.event(str(number)) for number in range(8)]
    pieces = [wire.chunk(b"".join(rest[at : at + batch])) for at in range(0, 8, batch)]
    up = router(script_engine([wire.STREAM_HEAD, wire.chunk(first), *pieces, wire.Gate()]))
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    client.read(rest[-1])
    client.close()
    fact = up.records.fact()
    assert (fact.outcome, fact.tokens_out, fact.usage_source) == ("client_gone", 9, "estimated")


def test_decisions_without_their_policys_own_signal_are_counted(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    """No engine here reports its memory, so the rule that looks for free memory has nothing to go by."""
    up = router(script_engine(), script_engine(), **ADMIN, scheduling={"policy": "memory_aware"})
    for _ in range(3):
        assert up.ask(wire.chat()).status == 200
    assert figures(up)['turnout_schedule_fallback_total{policy="memory_aware",reason="no_signal"}'] == 3
