"""Killing an engine under load costs no client an answer that had not begun; its return restores traffic."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

CLIENTS = 40


def answered_by(name: str, seen: list[Any]) -> bool:
    return any(one.endpoint == name for one in seen)


def test_a_killed_engine_is_left_at_once_and_comes_back(processes: Any, chaos: Any) -> None:
    engines = processes.engines(3)
    router = processes.serve(engines, probe={"interval_s": 1.0})
    victim = engines[1]
    marks: dict[str, int] = {}

    def now_ms() -> int:
        return time.time_ns() // 1_000_000

    async def story(load: Any) -> None:
        await asyncio.sleep(2.0)
        marks["killed"] = now_ms()
        victim.signal(signal.SIGKILL)
        victim.child.wait()
        await asyncio.sleep(2.0)
        marks["restarted"] = now_ms()
        victim.start()
        await asyncio.to_thread(victim.wait_until_up)
        marks["up"] = now_ms()
        await asyncio.to_thread(processes.eventually, lambda: answered_by(victim.name, load.seen[-20:]), 5.0)

    load = chaos.Load(router.url, CLIENTS)
    asyncio.run(load.run(story))

    lost = [s for s in load.seen if s.error is not None and not s.began]
    assert [f"{s.error!r} after {s.attempts} attempts" for s in lost] == []
    assert [s for s in load.seen if s.error is None and not s.finished] == []
    cut = [s for s in load.seen if s.error is not None]
    assert len(cut) <= CLIENTS

    assert processes.eventually(lambda: len(router.rows("SELECT seq FROM calls")) >= len(load.seen))
    attempts = router.rows(
        "SELECT started_at_ms, ok, error_kind FROM attempts JOIN routes USING (route_id) WHERE replica = ?", victim.name
    )
    dead = [a for a in attempts if marks["killed"] + 1000 < a["started_at_ms"] < marks["restarted"]]
    assert dead == []
    back = [a["started_at_ms"] for a in attempts if a["started_at_ms"] >= marks["up"] and a["ok"]]
    assert back
    assert min(back) - marks["up"] <= 5000
    assert processes.eventually(lambda: all(router.endpoint(e.name)["in_flight"] == 0 for e in engines))
