"""Requests of both doors in one ledger: each has its row, and an engine of the door serves HTTP without a second one."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx2 as httpx  # what the SDK itself speaks through
import uvloop

from turnout.app import App
from turnout.config.schema import Config
from turnout.coordinator.client import CoordinatorClient
from turnout.coordinator.engine import Echo, EnginePeer
from turnout.core import options
from turnout.core.coordinator_options import Coordinator


def test_each_request_has_one_row_whatever_its_door(tmp_path: Path) -> None:
    database = tmp_path / "turnout.db"

    async def story() -> None:
        app = App(
            Config(
                server=options.Server(listen="127.0.0.1:0", admin_listen=""),
                auth=options.Auth(mode="open"),
                ledger=options.Ledger(url=f"sqlite:///{database}"),
                coordinator=Coordinator(enabled=True, bind="tcp://127.0.0.1:*", model="m", tokenizer="bytes"),
            )
        )
        await app.start()
        address = app._coordinator.address
        engine = EnginePeer(address, b"mp-coord-0", Echo(0.0, tokens=8))
        engine.start()
        while len(app.gateway.fleet.endpoints) < 1:  # noqa: ASYNC110 - a condition of another peer has no event
            await asyncio.sleep(0.01)
        client = CoordinatorClient(address)
        await client.connect()
        for _ in range(3):
            await client.submit([1, 2, 3], {"num_tokens_to_generate": 4})
        async with httpx.AsyncClient(base_url=f"http://{app.address}", timeout=30) as http:
            body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
        client.close()
        assert app.ledger is not None
        assert await asyncio.to_thread(app.ledger.flush, 20.0) == 0
        engine.close(goodbye=False)
        await app.stop()

    uvloop.run(asyncio.wait_for(story(), 40))
    with closing(sqlite3.connect(database)) as conn:
        rows = conn.execute("SELECT dialect, outcome, attempts_n FROM calls ORDER BY dialect, seq").fetchall()
    assert rows == [("megatron", "completed", 1)] * 3 + [("openai", "completed", 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["turnout.db"]
