"""Load that vLLM tells beside its answers (engines §2), over real sockets: what is asked, taken, and never passed on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import uvloop

from turnout.app import App
from turnout.config.schema import Config
from turnout.core.fleet.endpoint import EndpointState
from turnout.sim.faults import Fault
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

if TYPE_CHECKING:
    from tests.support.engine import Engine
    from tests.support.router import Router

Routers = Callable[..., "Router"]
Engines = Callable[..., "Engine"]

ASKED = b"endpoint-load-metrics-format"
TOLD = b"endpoint-load-metrics"
WAITING_7 = TOLD + b': JSON {"named_metrics": {"kv_cache_usage_perc": 0.5, "num_requests_waiting": 7.0}}'
PATIENCE_S = 10.0


class House:
    """A router before one scripted engine that tells of seven waiting requests, asked or not."""

    def __init__(self, router: Routers, engine: Engine, wire: Any, **options: object) -> None:
        self.engine = engine
        self.engine.says(wire.answer(wire.ANSWER, 200, WAITING_7))
        endpoint = {"name": "e1", "url": engine.url, "models": [wire.MODEL], **options}
        self.router = router(endpoint=[endpoint])

    @property
    def state(self) -> EndpointState:
        return self.router.call(lambda: self.router.app.gateway.fleet.endpoints["e1"])

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """As they are when the round that answered is over."""
        return self.router.call(lambda: self.router.app._observer.load_headers.counts)

    def asked(self) -> list[bytes]:
        return [value for name, value in self.engine.requests[-1].headers if name == ASKED]


def test_a_whole_answer_is_asked_and_its_word_taken_and_kept_from_the_client(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    house = House(router, script_engine(), wire, load_header=True)
    for number in (1, 2):
        answered = house.router.ask()
        assert (answered.status, answered.body, answered.header(TOLD)) == (200, wire.ANSWER, None)
        assert house.asked() == [b"JSON"]
        assert house.counts == {"e1": {"taken": number, "empty": 0, "bad": 0}}
        assert (house.state.waiting, house.state.kv_usage_ratio) == (7, 0.5)
    assert house.state.running is None


def test_nothing_is_asked_or_taken_unless_configured(router: Routers, script_engine: Engines, wire: Any) -> None:
    house = House(router, script_engine(), wire)
    answered = house.router.ask()
    assert (answered.status, answered.header(TOLD), house.asked()) == (200, None, [])
    assert (house.state.observed_at, house.counts) == (None, {})


def test_streams_are_not_asked_and_not_believed(router: Routers, script_engine: Engines, wire: Any) -> None:
    house = House(router, script_engine(), wire, load_header=True)
    head = wire.STREAM_HEAD[:-2] + WAITING_7 + b"\r\n\r\n"
    events = [wire.event("a"), wire.event(finish="stop"), wire.USAGE, wire.DONE]
    house.engine.says([head, *map(wire.chunk, events), b"0\r\n\r\n"])
    answered = house.router.ask(wire.chat(stream=True))
    assert (answered.status, answered.whole, answered.header(TOLD), house.asked()) == (200, True, None, [])
    assert (house.state.observed_at, house.counts) == (None, {})


@pytest.mark.parametrize(
    ("line", "result"),
    [
        (TOLD + b": nonsense", "bad"),
        (TOLD + b': JSON {"named_metrics": {"num_requests_waiting": -1}}', "bad"),
        (TOLD + b': JSON {"named_metrics": {"num_requests_waiting": 1' + b" " * 5000 + b"}}", "bad"),
        (TOLD + b': JSON {"named_metrics": {}}', "empty"),
        (b"x-other: 1", ""),
    ],
)
def test_what_cannot_be_read_costs_nothing_but_a_count(
    router: Routers, script_engine: Engines, wire: Any, line: bytes, result: str
) -> None:
    house = House(router, script_engine(), wire, load_header=True)
    house.engine.says(wire.answer(wire.ANSWER, 200, line))
    answered = house.router.ask()
    assert (answered.status, answered.body, answered.header(TOLD)) == (200, wire.ANSWER, None)
    expected = {"taken": 0, "empty": 0, "bad": 0}
    assert house.counts == ({"e1": {**expected, result: 1}} if result else {})
    assert (house.state.waiting, house.state.observed_at) == (None, None)


def test_the_client_s_own_wish_travels_as_any_unknown_header_behind_ours(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    """Request-path §9: unknown headers are forwarded verbatim. vLLM reads the first of its name."""
    for options, asked in (({}, [b"TEXT"]), ({"load_header": True}, [b"JSON", b"TEXT"])):
        house = House(router, script_engine(), wire, **options)
        answered = house.router.ask(None, ASKED + b": TEXT")
        assert (answered.status, answered.header(TOLD), house.asked()) == (200, None, asked)


def test_an_engine_s_refusal_tells_nothing(router: Routers, script_engine: Engines, wire: Any) -> None:
    house = House(router, script_engine(), wire, load_header=True)
    house.engine.says(wire.answer(b'{"error":{"message":"bad"}}', 400, WAITING_7))
    answered = house.router.ask()
    assert (answered.status, answered.header(TOLD)) == (400, None)
    assert (house.state.observed_at, house.counts) == (None, {})


class Scene:
    """A simulated engine with one seat, and a router that never scrapes it."""

    async def start(self) -> None:
        self.engine = SimEngineServer(EngineOptions(model="m", max_num_seqs=1, num_blocks=64))
        host, self.engine_port = await self.engine.start()
        endpoint = {"name": "e", "url": f"http://{host}:{self.engine_port}", "models": ["m"], "load_header": True}
        config = {
            "server": {"listen": "127.0.0.1:0"},
            "auth": {"mode": "open"},
            "load": {"scrape_interval_ms": 0},
            "ledger": {"url": ""},
            "endpoint": [endpoint],
        }
        self.app = App(msgspec.convert(config, Config))
        await self.app.start()

    async def stop(self) -> None:
        await self.app.stop()
        await self.engine.stop()

    @property
    def state(self) -> EndpointState:
        return self.app.gateway.fleet.endpoints["e"]


async def complete(port: int, tokens: int, header: bytes = b"") -> bytes:
    body = msgspec.json.encode({"model": "m", "prompt": [1, 2, 3], "max_tokens": tokens, "ignore_eos": True})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: e\r\nconnection: close\r\ncontent-type: application/json\r\n"
        b"%bcontent-length: %d\r\n\r\n" % (header, len(body)) + body
    )
    answer = await reader.read()
    writer.close()
    return answer


async def seen(scene: Scene, name: str, number: int) -> None:
    """Ask the engine for its state until it is this one."""
    state: dict[str, object] = {}
    while state.get(name) != number:
        reader, writer = await asyncio.open_connection("127.0.0.1", scene.engine_port)
        writer.write(b"GET /sim/state HTTP/1.1\r\nconnection: close\r\n\r\n")
        state = msgspec.json.decode((await reader.read()).partition(b"\r\n\r\n")[2])
        writer.close()


def play(script: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        scene = Scene()
        await scene.start()
        try:
            async with asyncio.timeout(3 * PATIENCE_S):
                await script(scene)
        finally:
            await scene.stop()

    uvloop.run(run())


def test_a_simulated_engine_tells_of_its_queue_as_the_answer_leaves() -> None:
    async def script(scene: Scene) -> None:
        # Slow until the others wait behind it, so that the order does not depend on this machine.
        scene.engine.inject(Fault(kind="slow", factor=30.0))
        ours = asyncio.create_task(complete(scene.app.port, 60))
        await seen(scene, "running", 1)
        others = [asyncio.create_task(complete(scene.engine_port, 1)) for _ in range(2)]
        await seen(scene, "waiting", 2)
        scene.engine.clear_faults()
        answer = await ours
        assert answer.startswith(b"HTTP/1.1 200")
        assert TOLD not in answer
        assert (scene.state.waiting, scene.state.running) == (2, None)
        assert scene.state.kv_usage_ratio is not None
        assert scene.app.gateway.fleet.endpoints["e"].in_flight_at_report == 0
        await asyncio.gather(*others)

    play(script)


def test_a_simulated_engine_writes_either_form_to_whoever_asks() -> None:
    async def script(scene: Scene) -> None:
        plain = await complete(scene.engine_port, 2)
        assert TOLD not in plain
        as_json = await complete(scene.engine_port, 2, ASKED + b": JSON\r\n")
        assert TOLD + b': JSON {"named_metrics": {"kv_cache_usage_perc": 0.0, "num_requests_waiting": 0.0}}' in as_json
        as_text = await complete(scene.engine_port, 2, ASKED + b": text\r\n")
        assert TOLD + b": TEXT named_metrics.kv_cache_usage_perc=0.0, named_metrics.num_requests_waiting=0.0" in as_text
        assert TOLD not in await complete(scene.engine_port, 2, ASKED + b": BIN\r\n")
        scene.engine.inject(Fault(kind="metrics_missing"))
        assert TOLD + b': JSON {"named_metrics": {}}' in await complete(scene.engine_port, 2, ASKED + b": JSON\r\n")

    play(script)
