"""The whole router over an engine that publishes: a token prompt is matched exactly, explained, and shown by `top`."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import uvloop
from typer.testing import CliRunner

from turnout.app import App
from turnout.cli.verbs import app as verbs
from turnout.config.schema import Config
from turnout.core.fleet.precision import Mode
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

RUN = CliRunner()
T = TypeVar("T")
PATIENCE_S = 10.0
KEY_DIGEST = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"  # of "foo"


class Live:
    """Two engines and a router on a loop of their own thread, so that the commands under test may block."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.engines: list[SimEngineServer] = []
        self.run(self._start())

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    async def _start(self) -> None:
        endpoints = []
        for name in ("a", "b"):
            options = EngineOptions(
                model="m",
                name=name,
                speed=50.0,
                kv_events="tcp://127.0.0.1:*",
                kv_replay="tcp://127.0.0.1:*",
            )
            engine = SimEngineServer(options)
            host, port = await engine.start()
            self.engines.append(engine)
            events, replay = engine.kv_addresses
            endpoints.append(
                {
                    "name": name,
                    "url": f"http://{host}:{port}",
                    "models": ["m"],
                    "kv_events": events,
                    "kv_replay": replay,
                }
            )
        config = {
            "server": {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0"},
            "scheduling": {"policy": "turnout"},
            "ledger": {"url": ""},
            "load": {"scrape_interval_ms": 20, "idle_interval_ms": 20},
            "endpoint": endpoints,
            "key": [
                {"name": "k", "tenant": "t", "digest": KEY_DIGEST},
                {"name": "p", "tenant": "t", "digest": KEY_DIGEST_BAR, "permissions": ["policy"]},
            ],
        }
        self.app = App(msgspec.convert(config, Config))
        await self.app.start()
        await self._heard()

    async def _heard(self) -> None:
        """Have both engines publish until the router is told all of their caches; who subscribes late is told less."""
        states = self.app.gateway.fleet.endpoints
        number, deadline = 10_000, time.monotonic() + PATIENCE_S
        while any(state.mode is not Mode.EXACT for state in states.values()):
            assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: both streams are exact"
            for engine in self.engines:
                number += 100
                await self._complete(list(range(number, number + 64)), "", engine._port)

    async def agreed(self) -> None:
        """Wait until the router knows every block that the engines hold."""
        deadline = time.monotonic() + PATIENCE_S
        for engine in self.engines:
            store = engine._ranks.first.model.store
            stream = self.app.gateway.fleet.endpoints[engine.options.name].streams[0]
            while stream.blocks != store.used + store.cached:
                assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: the router knows what is cached"
                await asyncio.sleep(0.01)

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.app.admin_port}"

    async def _complete(self, tokens: list[int], headers: str, port: int = 0) -> tuple[int, dict[str, str], bytes]:
        body = json.dumps({"model": "m", "prompt": tokens, "max_tokens": 3, "ignore_eos": True}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.app.port)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: r\r\nconnection: close\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        raw, _, rest = answer.partition(b"\r\n\r\n")
        lines = raw.decode().split("\r\n")
        return int(lines[0].split()[1]), dict(line.lower().split(": ", 1) for line in lines[1:]), rest

    def complete(self, tokens: list[int], key: str = "foo", policy: str = "") -> tuple[int, dict[str, str], bytes]:
        headers = f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        if policy:
            headers += f"x-turnout-policy: {policy}\r\n"
        result: tuple[int, dict[str, str], bytes] = self.run(self._complete(tokens, headers))
        return result

    def close(self) -> None:
        async def stop() -> None:
            await self.app.stop()
            for engine in self.engines:
                await engine.stop()

        self.run(stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


KEY_DIGEST_BAR = "sha256:fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9"  # of "bar"


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    world = Live()
    yield world
    world.close()


def test_token_prompt_is_matched_exactly_and_the_decision_is_explained(live: Live, tmp_path: Path) -> None:
    prompt = list(range(640))
    assert live.complete(prompt)[0] == 200
    live.run(live.agreed())
    status, headers, _ = live.complete(prompt)
    assert status == 200
    shown = RUN.invoke(verbs, ["route", headers["x-turnout-decision"].upper(), "--admin", live.admin])
    assert shown.exit_code == 0, shown.output
    assert "the same pick, the same totals, bit for bit" in shown.output
    as_json = RUN.invoke(verbs, ["route", headers["x-turnout-decision"].upper(), "--admin", live.admin, "--json"])
    document = json.loads(as_json.output)
    (picked,) = [c for c in document["candidates"] if c["endpoint"] == document["picked"]]
    assert (picked["mode"], picked["matched_blocks"], document["policy"]) == ("exact", 10, "turnout")
    stored = tmp_path / "decision.json"
    document["candidates"][0]["inputs"]["queue_s"] += 1.0
    stored.write_text(json.dumps(document))
    assert RUN.invoke(verbs, ["route", "--file", str(stored)]).exit_code == 2


def test_top_shows_every_endpoint(live: Live) -> None:
    live.complete(list(range(64)))
    shown = RUN.invoke(verbs, ["top", "--admin", live.admin, "--once"])
    assert shown.exit_code == 0, shown.output
    assert "all 2" in shown.output
    assert "exact" in shown.output
    assert "2 ready" in shown.output


def test_unknown_decision_is_one_line_and_exit_1(live: Live) -> None:
    shown = RUN.invoke(verbs, ["route", "01NOSUCHDECISION", "--admin", live.admin])
    assert shown.exit_code == 1
    assert "no decision of this id is kept" in shown.output
    assert RUN.invoke(verbs, ["top", "--admin", "http://127.0.0.1:1"]).exit_code == 1


def test_policy_is_chosen_per_request_with_permission_only(live: Live) -> None:
    prompt = list(range(64))
    status, headers, _ = live.complete(prompt, key="bar", policy="round_robin")
    assert status == 200
    shown = RUN.invoke(verbs, ["route", headers["x-turnout-decision"].upper(), "--admin", live.admin, "--json"])
    assert json.loads(shown.output)["policy"] == "round_robin"
    assert live.complete(prompt, key="foo", policy="round_robin")[0] == 403
    assert live.complete(prompt, key="bar", policy="best")[0] == 400
