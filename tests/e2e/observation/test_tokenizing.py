"""Chats that an engine tokenises for the router: matched by its KV events, or by their text when it cannot or is late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import uvloop

from turnout.app import App
from turnout.config.schema import Config
from turnout.core.fleet.precision import Mode
from turnout.core.scheduling.decision import Decision
from turnout.gateway.token_parity import Parity
from turnout.gateway.tokenizing import Remembered
from turnout.sim.faults import Fault
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

PATIENCE_S = 10.0
TEXT = "What the engine sees is what its cache knows. " * 40


class Scene:
    """Two engines that publish, and a router that has them tokenise."""

    def __init__(self, **prefix: object) -> None:
        self._prefix = {"tokenize": "auto", "tokenize_min_tokens": 64, "tokenize_timeout_ms": 5000, **prefix}
        self.engines: list[SimEngineServer] = []

    async def start(self) -> None:
        endpoints = []
        for name in ("a", "b"):
            engine = SimEngineServer(
                EngineOptions(
                    model="m",
                    name=name,
                    speed=50.0,
                    kv_events="tcp://127.0.0.1:*",
                    kv_replay="tcp://127.0.0.1:*",
                )
            )
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
            # Its first batch, so that the stream is known from the start.
            assert (
                await post(port, "/v1/completions", {"model": "m", "prompt": list(range(32)), "max_tokens": 1}) == 200
            )
        config = {
            "server": {"listen": "127.0.0.1:0"},
            "auth": {"mode": "open"},
            "scheduling": {"policy": "longest_prefix"},
            "ledger": {"url": ""},
            "load": {"scrape_interval_ms": 0},
            "prefix": self._prefix,
            "endpoint": endpoints,
        }
        self.app = App(msgspec.convert(config, Config))
        await self.app.start()

    async def stop(self) -> None:
        await self.app.stop()
        for engine in self.engines:
            await engine.stop()

    async def heard(self) -> None:
        """Have every engine publish until the router knows all of its cache."""
        fleet, number = self.app.gateway.fleet, 100
        deadline = time.monotonic() + PATIENCE_S
        while any(state.mode is not Mode.EXACT for state in fleet.endpoints.values()):
            assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: both streams are exact"
            for engine in self.engines:
                number += 100
                prompt = list(range(number, number + 32))
                await post(engine._port, "/v1/completions", {"model": "m", "prompt": prompt, "max_tokens": 1})

    @property
    def counts(self) -> dict[str, int]:
        tokenizing = self.app.gateway.tokenizing
        assert tokenizing is not None
        return dict(tokenizing.counts)

    @property
    def last(self) -> Decision:
        return self.app.gateway.decisions[-1][1]

    async def chat(self, text: str = TEXT) -> int:
        messages = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": text}]
        return await post(self.app.port, "/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": 2})

    async def proved(self) -> None:
        """Ask until an engine has proved that it may be asked."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.counts.get("asked"):
            assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: a chat was tokenised"
            assert await self.chat(f"{len(self.app.gateway.decisions)} {TEXT}") == 200


async def post(port: int, path: str, document: dict[str, Any]) -> int:
    body = msgspec.json.encode(document)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST %b HTTP/1.1\r\nhost: e\r\nconnection: close\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % (path.encode(), len(body)) + body
    )
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


def play(script: Callable[[Scene], Awaitable[None]], **prefix: object) -> None:
    async def run() -> None:
        scene = Scene(**prefix)
        await scene.start()
        try:
            await script(scene)
        finally:
            await scene.stop()

    uvloop.run(run())


def test_a_chat_is_matched_by_what_the_engine_says_of_its_cache() -> None:
    async def script(scene: Scene) -> None:
        await scene.heard()
        await scene.proved()
        fleet = scene.app.gateway.fleet
        # Engine b gets the conversation behind the router's back: only its events can tell.
        messages = [{"role": "user", "content": TEXT}]
        asked = {"model": "m", "messages": messages, "max_tokens": 2}
        assert await post(scene.engines[1]._port, "/v1/chat/completions", asked) == 200
        deadline = time.monotonic() + PATIENCE_S
        store = scene.engines[1]._ranks.first.model.store
        while fleet.endpoints["b"].streams[0].blocks != store.used + store.cached:
            assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: engine b's blocks are known"
            await asyncio.sleep(0.01)
        before = scene.counts
        for result in ("asked", "remembered"):
            assert await post(scene.app.port, "/v1/chat/completions", asked) == 200
            decision = scene.last
            assert decision.picked is not None
            assert (decision.picked.name, decision.mode) == ("b", Mode.EXACT)
            assert decision.matched_blocks > 0
            assert scene.counts[result] == before.get(result, 0) + 1
        tokenizing = scene.app.gateway.tokenizing
        assert tokenizing is not None
        assert tokenizing.stats()["render_parity"] == {"a": 1}

    play(script)


@pytest.mark.parametrize(
    ("fault", "result", "timeout_ms"),
    [
        (Fault(kind="status", status=500, match="/tokenize"), "failed", 5000),
        (Fault(kind="status", status=404, match="/tokenize"), "unsupported", 5000),
        (Fault(kind="accept_hang", match="/tokenize"), "late", 20),
    ],
)
def test_an_engine_that_does_not_answer_leaves_the_chat_to_its_text(fault: Fault, result: str, timeout_ms: int) -> None:
    async def script(scene: Scene) -> None:
        await scene.heard()
        tokenizing = scene.app.gateway.tokenizing
        assert tokenizing is not None
        if timeout_ms > 1000:
            await scene.proved()
        for engine in scene.engines:
            engine.inject(fault)
        if timeout_ms <= 1000:  # a machine under load may be too late for so short a time: the proof is told
            state = scene.app.gateway.fleet.endpoints["a"]
            parity = tokenizing.parity.setdefault("a", (state.incarnation, Parity()))[1]
            parity.holds = True
            tokenizing.parity["a"] = (state.incarnation, parity)
        before = scene.counts.get(result, 0)
        assert await scene.chat("another " + TEXT) == 200
        assert scene.counts[result] == before + 1
        assert scene.last.modes == ()

    play(script, tokenize_timeout_ms=timeout_ms)


def test_what_is_remembered_is_bounded_by_conversations_and_by_tokens() -> None:
    known = Remembered(conversations=2, tokens=10)
    known.put(1, [1, 2, 3])
    known.put(2, [4] * 6)
    assert known.use(1) == (1, 2, 3)
    known.put(3, [5, 5])
    assert (known.use(2), known.use(1), known.use(3)) == (None, (1, 2, 3), (5, 5))
    known.put(3, [6] * 9)
    assert (known.use(1), known.use(3)) == (None, (6,) * 9)
    known.put(4, [7] * 11)
    assert known.use(4) is None
