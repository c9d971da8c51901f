"""A database that nobody can write to for a while costs no request, and afterwards no row is missing."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from typing import Any

CLIENTS = 20
DOWN_S = float(os.environ.get("TURNOUT_OUTAGE_S", "3"))
"""The promise is proved with 30 s; a run of the suite looks at some."""


def test_no_request_fails_while_the_database_is_locked_and_every_row_comes(processes: Any, chaos: Any) -> None:
    router = processes.serve(processes.engines(2))
    during: list[int] = []
    assert processes.eventually(lambda: router.database.exists() and router.rows("SELECT 1"), 60.0)

    async def story(load: Any) -> None:
        await asyncio.to_thread(processes.eventually, lambda: len(load.seen) > CLIENTS)
        with closing(sqlite3.connect(router.database, timeout=10.0, isolation_level=None)) as conn:
            conn.execute("BEGIN IMMEDIATE")
            before = len(load.seen)
            await asyncio.sleep(DOWN_S)
            during.append(len(load.seen) - before)
            conn.execute("ROLLBACK")
        after = len(load.seen)
        await asyncio.to_thread(processes.eventually, lambda: len(load.seen) > after + CLIENTS)

    load = chaos.Load(router.url, CLIENTS)
    asyncio.run(load.run(story))
    assert during[0] > CLIENTS
    assert [repr(seen.error) for seen in load.seen if seen.error is not None] == []
    assert processes.eventually(lambda: len(router.rows("SELECT seq FROM calls")) >= len(load.seen), 60.0)
    assert router.stop() == 0
    with closing(sqlite3.connect(router.database)) as conn:
        rows = [call_id for (call_id,) in conn.execute("SELECT call_id FROM calls")]
    assert len(rows) == len(set(rows))
    assert sorted({seen.decision for seen in load.seen} - set(rows)) == []
    assert len(rows) == len(load.seen)
