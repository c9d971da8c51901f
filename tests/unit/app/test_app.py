"""The composition root: a router comes up on free ports, answers, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from turnout.app import App
from turnout.config.schema import Config


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def config(folder: Path, **server: object) -> Config:
    tables = {
        "server": {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", **server},
        "auth": {"mode": "open"},
        "ledger": {"url": f"sqlite:///{folder / 'ledger.db'}"},
        "log": {"level": "error"},
        "endpoint": [{"name": "e1", "url": "http://127.0.0.1:9", "models": ["m"]}],
    }
    return msgspec.convert(tables, Config)


async def get(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n" % path.encode())
    answer = await reader.read()
    writer.close()
    return answer


def test_it_serves_on_the_ports_the_system_gave_and_stops(tmp_path: Path) -> None:
    async def go() -> tuple[bytes, bytes]:
        app = App(config(tmp_path))
        await app.start()
        answers = await get(app.port, "/health"), await get(app.admin_port, "/metrics")
        await app.stop()
        with pytest.raises(OSError):
            await get(app.port, "/health")
        return answers

    health, metrics = asyncio.run(go())
    assert health.startswith(b"HTTP/1.1 200")
    assert b"turnout_build_info" in metrics
    assert (tmp_path / "ledger.db").exists()


def test_metrics_are_not_on_the_public_listener(tmp_path: Path) -> None:
    async def go() -> list[bytes]:
        app = App(config(tmp_path, admin_listen=""))
        await app.start()
        answers = [await get(app.port, path) for path in ("/metrics", "/x/endpoints", "/x/decisions/1")]
        await app.stop()
        return answers

    assert [answer[:12] for answer in asyncio.run(go())] == [b"HTTP/1.1 404"] * 3


def test_an_asked_for_stop_ends_run(tmp_path: Path) -> None:
    async def go() -> None:
        app = App(config(tmp_path))
        await app.run(on_ready=app.request_stop)

    asyncio.run(go())


def test_stopping_leaves_no_task_behind(tmp_path: Path) -> None:
    async def go() -> list[str]:
        app = App(config(tmp_path))
        await app.start()
        await get(app.port, "/ready")
        await app.stop()
        await asyncio.sleep(0)
        return [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    assert asyncio.run(go()) == []
