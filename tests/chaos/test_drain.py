"""SIGTERM under load cuts nothing that was accepted, and loses no row of the ledger."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import time
from collections import Counter
from typing import Any

CLIENTS = 40
REFUSED_S = 0.5


def test_sigterm_finishes_what_was_accepted_and_records_it(processes: Any, chaos: Any) -> None:
    engines = processes.engines(3)
    router = processes.serve(engines)

    async def story(load: Any) -> None:
        assert await asyncio.to_thread(processes.eventually, lambda: len(load.seen) > CLIENTS)
        router.signal(signal.SIGTERM)
        # Clients go on asking for a moment: on kept connections and on new ones they must be turned away.
        await asyncio.sleep(REFUSED_S)
        load.stop()

    load = chaos.Load(router.url, CLIENTS)
    asyncio.run(load.run(story))
    assert router.child.wait(60) == 0

    accepted = [s for s in load.seen if s.error is None]
    assert len(accepted) > CLIENTS
    assert [s for s in accepted if not s.finished] == []
    refused = [s for s in load.seen if s.error is not None]
    statuses = Counter(getattr(s.error, "status_code", None) or type(s.error).__name__ for s in refused)
    assert set(statuses) <= {503, "APIConnectionError"}, statuses
    assert [s for s in refused if s.began] == []

    rows = Counter(row["call_id"] for row in router.rows("SELECT call_id FROM calls"))
    assert {s.decision: rows[s.decision] for s in accepted if rows[s.decision] != 1} == {}
    assert sum(rows.values()) == len(accepted)
    assert {row["outcome"] for row in router.rows("SELECT DISTINCT outcome FROM calls")} == {"completed"}
    attempts = router.rows("SELECT call_id, count(*) AS n FROM attempts GROUP BY call_id")
    assert {row["call_id"]: row["n"] for row in attempts} == dict.fromkeys(rows, 1)
    assert [engine.state["running"] for engine in engines] == [0, 0, 0]


def test_a_long_stream_outlives_the_signal_and_new_requests_are_told_to_come_back(processes: Any, chaos: Any) -> None:
    router = processes.serve(processes.engines(1))

    kept = http.client.HTTPConnection("127.0.0.1", router.port, timeout=30)

    def get(path: str, connection: http.client.HTTPConnection | None = None) -> tuple[http.client.HTTPResponse, bytes]:
        asked = connection or http.client.HTTPConnection("127.0.0.1", router.port, timeout=30)
        asked.request("GET", path)
        answered = asked.getresponse()
        body = answered.read()
        if connection is None:
            asked.close()
        return answered, body

    async def go() -> Any:
        async with chaos.client(router.url) as client:
            long = asyncio.create_task(chaos.ask(client, 1, stream=True, tokens=150))
            await asyncio.to_thread(processes.eventually, lambda: router.endpoint("e1")["in_flight"])
            assert get("/ready", kept)[0].status == 200
            router.signal(signal.SIGTERM)
            signalled = time.monotonic()
            while (ready := (await asyncio.to_thread(get, "/ready"))[0]).status == 200:
                assert time.monotonic() - signalled < 30
            refused = await asyncio.to_thread(get, "/v1/models")
            return await long, ready, refused

    seen, ready, (refused, body) = asyncio.run(go())
    assert (ready.status, ready.headers["connection"]) == (503, "close")
    assert (refused.status, json.loads(body)["error"]["code"]) == (503, "draining")
    assert refused.headers["retry-after"] == "15"
    kept.close()
    assert (seen.error, seen.finished) == (None, True)
    assert router.child.wait(60) == 0
    assert router.call(seen.decision)["outcome"] == "completed"


def test_a_second_signal_does_not_wait_for_the_grace(processes: Any, chaos: Any) -> None:
    (engine,) = processes.engines(1)
    router = processes.serve([engine])  # with the default grace of ten minutes

    def refuses() -> bool:
        return bool(chaos.one(router.url, stream=False, number=2).error)

    async def go() -> Any:
        async with chaos.client(router.url) as client:
            endless = asyncio.create_task(chaos.ask(client, 1, stream=True, tokens=100_000))
            await asyncio.to_thread(processes.eventually, lambda: engine.state["running"])
            router.signal(signal.SIGTERM)
            await asyncio.to_thread(processes.eventually, refuses)
            assert not endless.done()
            router.signal(signal.SIGTERM)
            return await endless

    seen = asyncio.run(go())
    assert seen.began
    assert not seen.finished
    assert "shutting down" in str(seen.error)
    assert router.child.wait(60) == 0
    assert router.call(seen.decision)["outcome"] == "shutdown"
    assert processes.eventually(lambda: engine.state["running"] == 0)
