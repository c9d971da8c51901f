"""KV events and load reports of a simulated engine over real sockets, until the core knows what the engine knows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest
import uvloop

from turnout.core import options
from turnout.core.fleet.precision import Mode
from turnout.core.fleet.registry import Fleet
from turnout.core.prefix.keys import root_key, token_keys
from turnout.engines.kv_events import of_rank
from turnout.observation.kv_events import KvEvents
from turnout.observation.scraper import Scraper
from turnout.sim.faults import Fault
from turnout.sim.kv_journal import KvEncoding, KvHashes
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

BLOCK = 16
PATIENCE_S = 10.0


class Scene:
    """One engine that publishes, one fleet that listens."""

    def __init__(self, **engine: object) -> None:
        given = {
            "kv_events": "tcp://127.0.0.1:*",
            "kv_replay": "tcp://127.0.0.1:*",
            "num_blocks": 64,
            "speed": 50.0,
            "model": "m",
            "block_tokens": BLOCK,
            **engine,
        }
        self.server = SimEngineServer(EngineOptions(**given))  # type: ignore[arg-type]
        self.fleet = Fleet(options.Scheduling(), options.Prefix(), options.Breaker())
        self.events: KvEvents | None = None
        self.scraper: Scraper | None = None
        self.restarts: list[str] = []
        self.port = 0

    async def start(self, *, listen: bool = True) -> None:
        _, self.port = await self.server.start()
        published, replayed = self.server.kv_addresses
        self.endpoint = options.Endpoint(
            name="e", url=f"http://127.0.0.1:{self.port}", models=["m"], kv_events=published, kv_replay=replayed
        )
        self.fleet.add(self.endpoint, time.monotonic())
        if listen:
            self.listen()
            await asyncio.sleep(0.2)  # a subscription that is not there yet would miss the first batches

    def listen(self) -> None:
        self.events = KvEvents(
            self.fleet, [self.endpoint], options.KvEvents(replay_timeout_s=1.0), clock=time.monotonic
        )
        self.events.start()

    def scrape(self) -> None:
        self.scraper = Scraper(
            self.fleet,
            [self.endpoint],
            options.Load(scrape_interval_ms=20, idle_interval_ms=20),
            clock=time.monotonic,
            on_restart=lambda state: self.restarts.append(state.name),
        )
        self.scraper.start()

    async def stop(self) -> None:
        if self.events is not None:
            self.events.stop()
        if self.scraper is not None:
            await self.scraper.stop()
        await self.server.stop()

    async def complete(self, tokens: list[int], max_tokens: int = 4) -> dict[str, object]:
        body = msgspec.json.encode({"model": "m", "prompt": tokens, "max_tokens": max_tokens, "ignore_eos": True})
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: e\r\nconnection: close\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        answer = await reader.read()
        writer.close()
        document: dict[str, object] = msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])
        return document

    def mode(self) -> Mode:
        return self.fleet.endpoints["e"].mode

    def depth(self, tokens: list[int]) -> float:
        root = root_key("m", space="tok", block=BLOCK)
        found = self.fleet.exact.match(token_keys(tokens, root, BLOCK, 4096), self.fleet.exact.live)
        return max(found.values(), default=0.0)

    def agrees(self) -> bool:
        """Whether the index holds exactly the engine's own table of complete blocks."""
        store = self.server._ranks.first.model.store
        stream = self.fleet.endpoints["e"].streams[0]
        known = stream.hashes.keys() | stream.older.keys()
        return len(known) == store.used + store.cached and all(store.holds(key) for key in known)


def play(scene: Scene, script: Callable[[Scene], Awaitable[None]], *, listen: bool = True) -> None:
    async def run() -> None:
        await scene.start(listen=listen)
        try:
            await script(scene)
        finally:
            await scene.stop()

    uvloop.run(run())


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        await asyncio.sleep(0.01)


def prompt(number: int, blocks: int) -> list[int]:
    return [number * 1000 + position for position in range(blocks * BLOCK)]


@pytest.mark.parametrize(("encoding", "hashes"), [("array", "bytes"), ("map", "int"), ("map-batch", "bytes")])
def test_index_equals_the_engines_block_table(encoding: KvEncoding, hashes: KvHashes) -> None:
    async def script(scene: Scene) -> None:
        for number in range(12):  # 12 × 9 blocks do not fit into 64: some are evicted
            await scene.complete(prompt(number, 8), max_tokens=20)
        await until(scene.agrees, "the index agrees with the engine")
        assert scene.mode() is Mode.EXACT
        assert scene.depth(prompt(11, 8)) == 8
        assert scene.depth(prompt(0, 8)) == 0

    play(Scene(kv_encoding=encoding, kv_hashes=hashes), script)


def test_late_subscriber_is_exact_through_the_replay() -> None:
    async def script(scene: Scene) -> None:
        for number in range(3):
            await scene.complete(prompt(number, 4))
        scene.listen()
        await asyncio.sleep(0.3)
        assert scene.mode() is Mode.APPROXIMATE
        await scene.complete(prompt(9, 4))
        await until(lambda: scene.mode() is Mode.EXACT, "the replay reached the first batch")
        assert scene.depth(prompt(0, 4)) == 4
        assert scene.agrees()

    play(Scene(), script, listen=False)


def test_late_subscriber_without_replay_is_degraded() -> None:
    async def script(scene: Scene) -> None:
        await scene.complete(prompt(1, 4))
        scene.listen()
        await asyncio.sleep(0.3)
        await scene.complete(prompt(2, 4))
        await until(lambda: scene.mode() is Mode.DEGRADED, "what was missed is doubted")
        assert scene.depth(prompt(1, 4)) == 0
        assert scene.depth(prompt(2, 4)) == 4

    play(Scene(kv_replay=""), script, listen=False)


@pytest.mark.parametrize("kind", ["event_drop", "event_dup", "event_reorder", "event_garbage"])
def test_faults_of_the_stream_are_healed_by_the_replay(kind: str) -> None:
    async def script(scene: Scene) -> None:
        await scene.complete(prompt(0, 4))
        scene.server.inject(Fault(kind=kind, count=1))  # type: ignore[arg-type]
        for number in range(1, 4):
            await scene.complete(prompt(number, 4))
        await until(scene.agrees, "the index agrees with the engine")
        assert scene.mode() is Mode.EXACT

    play(Scene(), script)


def test_publisher_that_starts_again_is_heard_anew() -> None:
    async def script(scene: Scene) -> None:
        await scene.complete(prompt(0, 4))
        await until(lambda: scene.depth(prompt(0, 4)) == 4, "the first block was heard")
        scene.server.inject(Fault(kind="event_restart", count=1))
        await scene.complete(prompt(1, 4))
        await until(lambda: scene.depth(prompt(1, 4)) == 4, "the new numbers are heard")
        assert scene.depth(prompt(0, 4)) == 0

    play(Scene(), script)


def test_scrapes_become_load_with_age() -> None:
    async def script(scene: Scene) -> None:
        scene.scrape()
        state = scene.fleet.endpoints["e"]
        await until(lambda: state.observed_at is not None, "the first report came")
        assert (state.running, state.waiting, state.kv_capacity_tokens) == (0, 0, 64 * BLOCK)
        answer = asyncio.create_task(scene.complete(prompt(1, 4), max_tokens=400))
        await until(lambda: state.running == 1, "the running request was reported")
        assert state.kv_usage_ratio is not None
        assert state.kv_usage_ratio > 0
        await answer
        await until(lambda: state.running == 0, "its end was reported")
        assert state.observed_at is not None
        assert time.monotonic() - state.observed_at < PATIENCE_S

    play(Scene(speed=5.0), script)


def test_renamed_metrics_are_a_lost_signal_counted_once() -> None:
    async def script(scene: Scene) -> None:
        scene.scrape()
        assert scene.scraper is not None
        scrapes = scene.scraper.scrapes["e"]
        await until(lambda: scrapes.done > 1, "reports come")
        scene.server.inject(Fault(kind="metrics_missing"))
        await until(lambda: scrapes.failed > 2, "reports are empty")
        assert scrapes.lost == {"running": 1, "waiting": 1, "kv_usage_ratio": 1, "kv_capacity_tokens": 1}

    play(Scene(), script)


def test_engine_that_starts_again_is_noticed() -> None:
    async def script(scene: Scene) -> None:
        await scene.complete(prompt(1, 2))
        scene.scrape()
        assert scene.scraper is not None
        scrapes = scene.scraper.scrapes["e"]
        await until(lambda: scrapes.done > 0, "a report came")
        await scene.server.stop()
        await asyncio.sleep(0.05)
        await scene.server.start()
        await until(lambda: scene.restarts == ["e"], "the new life was noticed")

    play(Scene(kv_events="", kv_replay=""), script)


def test_engine_is_asked_where_it_publishes() -> None:
    async def script(scene: Scene) -> None:
        published, _ = scene.server.kv_addresses
        page = msgspec.json.encode(
            {
                "api_key": "secret",
                "kv_events": {
                    "publisher": "zmq",
                    "endpoint_host": "*",
                    "endpoint_port_base": int(published.rpartition(":")[2]),
                    "topic": "",
                    "block_size": BLOCK,
                    "dp_size": 1,
                },
            }
        )

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(page) + page)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as info:
            port = info.sockets[0].getsockname()[1]
            scene.endpoint = options.Endpoint(name="e", url=f"http://127.0.0.1:{port}", models=["m"], kv_discover=True)
            scene.listen()
            await until(lambda: bool(scene.events and scene.events.informants), "the engine told its address")
            await asyncio.sleep(0.3)
            await scene.complete(prompt(1, 4))
            await until(lambda: scene.depth(prompt(1, 4)) == 4, "its events are heard")

    play(Scene(), script, listen=False)


def test_ranks_have_addresses_of_their_own() -> None:
    assert [of_rank("tcp://h:5557", rank) for rank in (0, 2)] == ["tcp://h:5557", "tcp://h:5559"]
    assert of_rank("inproc://x", 1) == "inproc://x_dp1"
    assert of_rank("", 3) == ""
