"""An engine of two data-parallel ranks behind the whole router: a match leads to the rank that holds it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest
import uvloop

from turnout.app import App
from turnout.config.schema import Config
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.scheduling.explain import explain
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

PATIENCE_S = 10.0
BLOCK = 16


class Scene:
    """One engine with two ranks, and a router that chooses among them."""

    def __init__(self, family: str, folder: str) -> None:
        self.engine = SimEngineServer(
            EngineOptions(
                model="m",
                speed=50.0,
                block_tokens=BLOCK,
                dp_size=2,
                kv_events=f"ipc://{folder}/kv",
                kv_replay=f"ipc://{folder}/replay",
                kv_load=f"ipc://{folder}/load",
                num_blocks=64,
            )
        )
        self._family, self._folder = family, folder

    async def start(self) -> None:
        host, self.engine_port = await self.engine.start()
        endpoint = {
            "name": "e",
            "url": f"http://{host}:{self.engine_port}",
            "models": ["m"],
            "family": self._family,
            "kv_events": f"ipc://{self._folder}/kv",
            "kv_replay": f"ipc://{self._folder}/replay",
            "kv_ranks": 2,
            "kv_route_ranks": True,
            "load_events": f"ipc://{self._folder}/load",
        }
        config = {
            "server": {"listen": "127.0.0.1:0"},
            "auth": {"mode": "open"},
            "load": {"scrape_interval_ms": 0},
            "scheduling": {"policy": "turnout"},
            "ledger": {"url": ""},
            "endpoint": [endpoint],
        }
        self.app = App(msgspec.convert(config, Config))
        await self.app.start()

    async def stop(self) -> None:
        await self.app.stop()
        await self.engine.stop()

    @property
    def endpoint(self) -> EndpointState:
        return self.app.gateway.fleet.endpoints["e"]

    @property
    def by_rank(self) -> list[int]:
        counts: list[int] = self.engine.state()["requests_by_rank"]
        return counts


async def complete(port: int, tokens: list[int], header: str = "") -> int:
    body = msgspec.json.encode({"model": "m", "prompt": tokens, "max_tokens": 2, "ignore_eos": True})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: e\r\nconnection: close\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n%b\r\n" % (len(body), header.encode()) + body
    )
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        await asyncio.sleep(0.01)


def play(family: str, script: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            scene = Scene(family, folder)
            await scene.start()
            try:
                await script(scene)
            finally:
                await scene.stop()

    uvloop.run(run())


@pytest.mark.parametrize("family", ["vllm", "sglang"])
def test_a_match_leads_to_the_rank_that_holds_it(family: str) -> None:
    async def script(scene: Scene) -> None:
        known = list(range(8 * BLOCK))
        assert await complete(scene.engine_port, known, "x-data-parallel-rank: 1\r\n") == 200
        await until(
            lambda: len(scene.endpoint.streams) == 2 and scene.endpoint.streams[1].blocks >= 8, "rank 1 was heard"
        )
        assert scene.endpoint.streams[0].blocks == 0
        assert await complete(scene.app.port, [*known, 7]) == 200
        assert scene.by_rank == [0, 2]
        decision = scene.app.gateway.decisions[-1][1]
        assert (explain(decision, "x")["dp_rank"], decision.matched_blocks) == (1, 2)  # blocks of 64 tokens are counted
        assert await complete(scene.app.port, list(range(9000, 9000 + 8 * BLOCK))) == 200
        assert scene.by_rank == [1, 2]
        ranks = scene.endpoint.ranks
        assert ranks is not None
        await until(lambda: ranks.in_flight == [0, 0], "both were given back")

    play(family, script)


def test_a_rank_that_does_not_exist_is_refused_by_the_engine() -> None:
    async def script(scene: Scene) -> None:
        assert await complete(scene.engine_port, list(range(64)), "x-data-parallel-rank: 2\r\n") == 400
        assert await complete(scene.engine_port, list(range(64)), "x-data-parallel-rank: one\r\n") == 400
        assert scene.by_rank == [0, 0]

    play("vllm", script)


def test_pushed_load_of_all_ranks_is_one_report() -> None:
    async def script(scene: Scene) -> None:
        state = scene.endpoint
        assert await complete(scene.engine_port, list(range(64)), "x-data-parallel-rank: 0\r\n") == 200
        # A subscriber that comes late misses what was published before: each round publishes again.
        deadline = time.monotonic() + PATIENCE_S
        while state.observed_at is None:
            assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: both ranks were heard"
            for rank in (0, 1):
                await complete(scene.engine_port, list(range(64)), f"x-data-parallel-rank: {rank}\r\n")
        await until(
            lambda: (state.running, state.waiting, state.waiting_uncached_tokens) == (0, 0, 0), "both were idle again"
        )
        assert (state.kv_capacity_tokens, state.kv_usage_ratio) == (2 * 64 * BLOCK, 0.0)

    play("vllm", script)
