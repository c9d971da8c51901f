"""S01 to S16 of resilience §13 on virtual time: the default time-outs, the exact attempts, in every mode.

The scenarios are those of `tests/failover`, which plays them with processes on loopback.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from turnout.sim.faults import Fault
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

if TYPE_CHECKING:
    from tests.support.router import Router

pytestmark = pytest.mark.parametrize("place", ["virtual"])

_FAILOVER = Path(__file__).parents[2] / "failover"
TOKENS = 60
CONTENT = "Tell me a story that has exactly sixty words, and then stop."
EVERY_S, DOWN_S, BACK_S = 4.0, 60.0, 30.0


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"failover_{name}", _FAILOVER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_scenarios = _load("test_scenarios")
SCENARIOS: dict[str, Any] = _scenarios.SCENARIOS
NAMES: list[str] = _scenarios.NAMES
Answer: Any = _load("conftest").Answer


class Bench:
    """Engine A, which fails, engine B, which stands by, and a router with the defaults."""

    def __init__(self, loop: Any, router: Callable[..., Router], name: str) -> None:
        self._loop = loop
        self.a, self.b = (self._engine(letter) for letter in "ab")
        tables: list[dict[str, Any]] = [
            {"name": "a", "url": self.a[1], "models": ["sim"]},
            {"name": "b", "url": self.b[1], "models": ["sim"], "standby": True, "continuation": name.startswith("S14")},
        ]
        probes = {"interval_s": 60}  # as on loopback: what brings A back is a request
        self.up = router(endpoint=tables, probe=probes, auth={"mode": "open"}, drain={"grace_s": 1.0})
        assert self.up.eventually(lambda: all(e.context_max for e in self.up.app.gateway.fleet.endpoints.values()))

    def _engine(self, name: str) -> tuple[SimEngineServer, str]:
        options = EngineOptions(
            name=name,
            model="sim",
            speed=4.0,
            mean_output_tokens=100_000,
            max_model_len=262_144 if name == "b" else 32_768,
        )

        async def make() -> SimEngineServer:
            return SimEngineServer(options, clock=self._loop.clock)

        server = self._loop.run(make())
        host, port = self._loop.run(server.start())
        return server, f"http://{host}:{port}"

    def fault(self, fields: dict[str, Any]) -> None:
        fields = dict(fields)
        server = (self.b if fields.pop("on", "a") == "b" else self.a)[0]
        self._loop.call(lambda: server.inject(Fault(**fields)))

    def ask(self, mode: str) -> Any:
        body = {
            "model": "sim",
            "messages": [{"role": "user", "content": CONTENT}],
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "temperature": 0,
            **({} if mode == "whole" else {"stream": True, "stream_options": {"include_usage": True}}),
        }
        lines = [b"Connection: close"]
        if mode in {"guarded", "buffered"}:
            lines.append(b"x-turnout-stream-safety: " + mode.encode())
        client: Any = self.up.client()
        began = self._loop.clock()
        client.send(self.up.request(json.dumps(body, separators=(",", ":")).encode(), *lines))
        assert self.up.eventually(lambda: client._wire.ended, 400.0)
        now = self._loop.clock()
        return Answer(client._wire.data, now - began, [now])

    def asked(self) -> tuple[int, int]:
        counts = [len(server.state()["requests"]) for server, _ in (self.a, self.b)]
        return counts[0], counts[1]

    def stop(self) -> None:
        self.up.stop()
        for server, _ in (self.a, self.b):
            self._loop.run(server.stop())


@pytest.fixture
def bench(loop: Any, router: Callable[..., Router], name: str) -> Any:
    bench = Bench(loop, router, name)
    yield bench
    bench.stop()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("S15")])
def test_attempts_and_answer(bench: Bench, name: str) -> None:
    scenario, mode = SCENARIOS[name.split("-", maxsplit=1)[0]], name.partition("-")[2]
    healthy = bench.ask("fast").text
    before = bench.asked()
    for fault in scenario.faults(1.0):
        bench.fault(fault)
    answer = bench.ask(mode)
    a, b = (now - then for now, then in zip(bench.asked(), before, strict=True))
    held = name == "S14-buffered"  # nothing was sent yet: the next attempt is a plain one
    assert (a, b) == (scenario.a, 1 if held else scenario.b), answer.raw[-300:]
    assert answer.took_s <= scenario.within_s
    if name.startswith("S01"):
        assert 2.0 <= answer.took_s < 6.0
    if name.startswith("S13"):
        assert (answer.status, answer.error["code"]) == (400, "content_policy_violation")
        return
    assert (answer.status, answer.error, answer.finished, answer.text) == (200, None, True, healthy)
    assert answer.usage["completion_tokens"] == TOKENS
    assert answer.terminated
    if answer.streamed:
        assert answer.done == (0 if name.startswith("S11") else 1)


@pytest.mark.parametrize("name", ["S15-fast", "S15-whole"])
def test_s15_a_returns_within_30_s(bench: Bench, name: str, loop: Any) -> None:
    mode = name.partition("-")[2]
    for fault in SCENARIOS["S15"].faults(1.0):
        bench.fault(fault)
    down_from = loop.clock()
    answers, back_s = [], None
    while back_s is None or len(answers) < 20:
        answer = bench.ask(mode)
        answers.append(answer)
        since = loop.clock() - down_from
        if back_s is None and answer.headers.get("x-turnout-endpoint") == "a":
            back_s = since - DOWN_S
        assert since < DOWN_S + BACK_S + EVERY_S
        loop.run(asyncio.sleep(max(0.0, len(answers) * EVERY_S - (loop.clock() - down_from))))
    assert 0 <= back_s <= BACK_S
    assert {(one.status, one.error) for one in answers} == {(200, None)}
