"""SIGKILL of the whole router under load: who saw a status line has exactly one row, and no row says more than it saw."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from turnout.ledger import audit

CLIENTS = 30
KILLS = int(os.environ.get("TURNOUT_ROUTER_KILLS", "2"))
"""The promise is proved with 50; a run of the suite looks at some."""
HANGS_S = 120.0


def test_a_killed_router_leaves_one_row_for_every_status_line(processes: Any, chaos: Any, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "sim"\ninput = 5\noutput = 15\n')
    router = processes.serve(processes.engines(2), prices={"file": str(prices)})
    rng = random.Random(7)

    def answered(load: Any) -> list[Any]:
        return [seen for seen in list(load.seen) if seen.decision]  # not those that met a closed door

    async def story(load: Any) -> None:
        for _ in range(KILLS):
            enough = len(answered(load)) + CLIENTS
            assert await asyncio.to_thread(processes.eventually, lambda n=enough: len(answered(load)) > n, HANGS_S)
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            router.signal(signal.SIGKILL)
            router.child.wait()
            router.start()
            await asyncio.to_thread(router.wait_until_up)

    load = chaos.Load(router.url, CLIENTS)
    asyncio.run(load.run(story))
    shown = {seen.decision for seen in load.seen if seen.decision}
    # What a busy machine has not stored yet waits in the spool.
    assert processes.eventually(
        lambda: shown <= {row["call_id"] for row in router.rows("SELECT call_id FROM calls")}, HANGS_S
    )
    assert router.stop() == 0

    with closing(sqlite3.connect(router.database)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = conn.execute("SELECT call_id, outcome, recovered FROM calls").fetchall()
    outcomes = {call_id: outcome for call_id, outcome, _ in rows}
    assert len(outcomes) == len(rows)
    assert len(shown) > KILLS * CLIENTS
    assert sorted(shown - outcomes.keys()) == []
    cut = [seen.decision for seen in load.seen if seen.decision and not seen.finished]
    assert [outcomes[decision] for decision in cut if outcomes[decision] == "completed"] == []
    assert any(recovered for _, _, recovered in rows)
    assert list(router.database.parent.glob("*.slots-*")) == []

    # Buckets and costs are those of the attempts, and what keys have spent is what their calls cost.
    assert audit.run(f"sqlite:///{router.database}", time.time_ns() // 1_000_000).problems == []
    assert router.rows("SELECT SUM(spent_nusd) AS s FROM budgets") == router.rows(
        "SELECT SUM(cost_nusd) AS s FROM calls"
    )
    assert router.rows("SELECT SUM(spent_nusd) AS s FROM budgets")[0]["s"] > 0
