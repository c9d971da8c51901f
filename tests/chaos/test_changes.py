"""Engines and configurations that change under load: drained, restarted one by one, reloaded; nothing is lost."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import openai
import pytest

SLOTS = 4


def endpoints(router: Any) -> dict[str, Any]:
    return {endpoint["endpoint"]: endpoint for endpoint in router.admin("/x/endpoints")["endpoints"]}


def change(processes: Any, router: Any, name: str, act: str) -> Any:
    return processes.fetch(f"http://127.0.0.1:{router.admin_port}/x/endpoints/{name}/{act}", "POST")


def test_a_rolling_restart_of_all_engines_loses_no_request(processes: Any, chaos: Any) -> None:
    engines = processes.engines(3, "--speed", "3")
    router = processes.serve(engines, probe={"interval_s": 0.3})

    async def story(load: Any) -> None:
        for engine in engines:
            await asyncio.to_thread(change, processes, router, engine.name, "drain")
            idle = lambda name=engine.name: endpoints(router)[name]["in_flight"] == 0  # noqa: E731
            assert await asyncio.to_thread(processes.eventually, idle)
            engine.signal(signal.SIGTERM)
            await asyncio.to_thread(engine.child.wait, 60)
            engine.start()
            await asyncio.to_thread(engine.wait_until_up)
            await asyncio.to_thread(change, processes, router, engine.name, "resume")
            served = lambda name=engine.name: endpoints(router)[name]["attempts"] > 0  # noqa: E731
            assert await asyncio.to_thread(processes.eventually, served)
        load.stop()

    load = chaos.Load(router.url, 12)
    asyncio.run(load.run(story))
    assert [(s.error, s.finished) for s in load.seen if s.error is not None or not s.finished] == []
    assert len(load.seen) > 12


def test_a_drained_endpoint_gets_nothing_until_it_is_resumed(processes: Any, chaos: Any) -> None:
    engines = processes.engines(2)
    router = processes.serve(engines)
    assert change(processes, router, "e1", "drain") == {"endpoint": "e1", "state": "draining"}
    assert {chaos.one(router.url, stream=False, number=n).endpoint for n in range(4)} == {"e2"}
    change(processes, router, "e1", "resume")
    assert endpoints(router)["e1"]["attempts"] == 0
    seen = {chaos.one(router.url, stream=False, number=n).endpoint for n in range(60)}
    assert seen == {"e1", "e2"}
    with pytest.raises(OSError, match="404"):
        change(processes, router, "e9", "drain")


def configured(router: Any) -> Any:
    return router.database.parent / "turnout.toml"


def test_sighup_swaps_the_configuration_and_keeps_the_last_good_one(processes: Any, chaos: Any) -> None:
    engines = processes.engines(2)
    router = processes.serve(engines[:1])
    file = configured(router)
    good = file.read_text()
    more = f'\n[[endpoint]]\nname = "e2"\nurl = "{engines[1].url}"\nmodels = ["sim"]\n'

    async def story(load: Any) -> None:
        await asyncio.sleep(0.5)
        file.write_text(good + "\n[[endpoint]]\nname = 3\n")
        router.signal(signal.SIGHUP)
        assert await asyncio.to_thread(processes.eventually, lambda: "reload_refused" in router.words())
        assert set(endpoints(router)) == {"e1"}
        file.write_text(good + more)
        router.signal(signal.SIGHUP)
        assert await asyncio.to_thread(processes.eventually, lambda: set(endpoints(router)) == {"e1", "e2"})
        assert await asyncio.to_thread(processes.eventually, lambda: endpoints(router)["e2"]["attempts"] > 2)
        # What is described as before keeps its state; what is gone ends what it has begun.
        kept = endpoints(router)["e1"]["attempts"]
        assert kept > 0
        file.write_text(good.replace('name = "e1"', 'name = "e3"') + more)
        router.signal(signal.SIGHUP)
        assert await asyncio.to_thread(processes.eventually, lambda: set(endpoints(router)) == {"e2", "e3"})
        await asyncio.sleep(0.5)
        load.stop()

    load = chaos.Load(router.url, 10)
    asyncio.run(load.run(story))
    assert [(s.error, s.finished) for s in load.seen if s.error is not None or not s.finished] == []
    rows = router.rows("SELECT call_id FROM calls")
    assert processes.eventually(lambda: len(router.rows("SELECT call_id FROM calls")) >= len(load.seen)), len(rows)


def limit(processes: Any, router: Any, places: int) -> None:
    """Give the endpoints of a running router this many places."""
    file = configured(router)
    file.write_text(file.read_text().replace('models = ["sim"]', f'models = ["sim"]\nmax_in_flight = {places}'))
    router.signal(signal.SIGHUP)
    assert processes.eventually(lambda: "reloaded" in router.words() and endpoints(router)["e1"]["context_max"])


def test_more_requests_than_places_wait_and_are_all_served(processes: Any, chaos: Any) -> None:
    (engine,) = processes.engines(1, "--max-num-seqs", str(SLOTS), "--speed", "4")
    router = processes.serve([engine], admission={"queue_wait_s": 20.0})
    limit(processes, router, SLOTS)

    async def burst() -> list[Any]:
        async with chaos.client(router.url) as client:
            return await asyncio.gather(*[chaos.ask(client, n, stream=n % 2 == 0) for n in range(SLOTS * 6)])

    seen = asyncio.run(burst())
    assert [(s.error, s.finished) for s in seen if s.error is not None or not s.finished] == []
    waits = [row["queue_ms"] for row in router.rows("SELECT queue_ms FROM calls") if row["queue_ms"]]
    assert processes.eventually(lambda: len(router.rows("SELECT queue_ms FROM calls WHERE queue_ms > 0")) > SLOTS), (
        waits
    )
    assert endpoints(router)["e1"]["in_flight"] == 0


def test_a_full_queue_says_503_and_when_to_come_back(processes: Any, chaos: Any) -> None:
    (engine,) = processes.engines(1, "--speed", "1")
    router = processes.serve([engine], admission={"queue_max": 2, "queue_wait_s": 1.0})
    limit(processes, router, 1)

    async def burst() -> list[Any]:
        async with chaos.client(router.url) as client:
            return await asyncio.gather(*[chaos.ask(client, n, stream=False, tokens=300) for n in range(8)])

    seen = asyncio.run(burst())
    refused = [s.error for s in seen if s.error is not None]
    assert len(refused) >= 5
    for error in refused:
        assert isinstance(error, openai.APIStatusError)
        # One anonymous principal: its share of the queue is all but one slot.
        assert error.status_code in (429, 503)
        assert int(error.response.headers["retry-after"]) >= 1
        assert "x-should-retry" not in error.response.headers


def test_a_slow_first_token_is_hedged(processes: Any, chaos: Any) -> None:
    """Z1 to Z3: after fifty quick ones, a silent engine costs its client a p95, not a time-out."""
    engines = processes.engines(2, "--speed", "20")
    router = processes.serve(engines)
    file = configured(router)
    file.write_text(file.read_text() + '\n[[model]]\nid = "sim"\nhedge = true\n')
    router.signal(signal.SIGHUP)
    assert processes.eventually(lambda: "reloaded" in router.words())

    async def warm() -> None:
        async with chaos.client(router.url) as client:
            for start in range(0, 60, 10):
                await asyncio.gather(*[chaos.ask(client, start + n, stream=True, tokens=3) for n in range(10)])

    asyncio.run(warm())
    engines[0].fault("health_lies", match="Request 7")

    async def together() -> list[Any]:  # one after another they might all follow their common beginning to one engine
        async with chaos.client(router.url) as client:
            return await asyncio.gather(*[chaos.ask(client, 7000 + n, stream=True, tokens=3) for n in range(4)])

    seen = asyncio.run(together())
    assert [(s.error, s.finished) for s in seen] == [(None, True)] * 4
    rows = [router.call(s.decision) for s in seen]
    hedged = [row for row in rows if row["hedged"]]
    assert hedged
    assert min(row["ttft_ms"] for row in hedged) < 5000  # the failover of a silent engine takes ten seconds
    quickest = min(hedged, key=lambda row: row["ttft_ms"])
    attempts = router.attempts(quickest["call_id"])
    assert [(a["kind"], a["error_kind"]) for a in attempts] == [("first", "hedge_lost"), ("hedge", "")]
    assert processes.eventually(lambda: engines[0].state["connections"] <= 3)


def test_poison_kills_at_most_two(processes: Any, chaos: Any) -> None:
    engines = processes.engines(4)
    router = processes.serve(engines)
    for engine in engines:
        engine.fault("exit", match="Request 666", after_requests=0, probability=1.0)
    engines_alive = [engine for engine in engines if engine.child.poll() is None]
    if len(engines_alive) < len(engines):
        pytest.fail("the fault struck when it was posted, not when it was met")
    seen = chaos.one(router.url, stream=False, number=666)
    assert isinstance(seen.error, openai.APIStatusError)
    assert (seen.error.status_code, seen.error.code) == (502, "poison_suspected")
    assert sum(engine.child.poll() is not None for engine in engines) == 2
    again = chaos.one(router.url, stream=False, number=666)
    assert again.error.code == "poison_suspected"
    assert sum(engine.child.poll() is not None for engine in engines) == 2
    assert chaos.one(router.url, stream=False, number=1).finished
