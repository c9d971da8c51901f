"""S01 to S16 of resilience §13, streamed (`fast`), streamed and held (`buffered`), and without a stream (`whole`)."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

EVER: dict[str, Any] = {}
ONCE: dict[str, Any] = {"count": 1}
STREAMS, ALL = ("fast", "buffered"), ("fast", "buffered", "whole")


class Scenario:
    """What is wrong with A, and what must be seen: attempts on A and B, and seconds at the most (unscaled)."""

    def __init__(
        self,
        faults: Callable[[float], list[dict[str, Any]]],
        a: int,
        b: int,
        within_s: float = 100.0,
        modes: tuple[str, ...] = ALL,
    ) -> None:
        self.faults = faults
        self.a, self.b = a, b
        self.within_s = within_s
        self.modes = modes


def fault(kind: str, **fields: Any) -> Callable[[float], list[dict[str, Any]]]:
    def scaled(scale: float) -> list[dict[str, Any]]:
        times: dict[str, Any] = {name: fields[name] * scale for name in ("seconds", "lasts_s") if name in fields}
        return [{"kind": kind, **fields, **times}]

    return scaled


def both(*faults: Callable[[float], list[dict[str, Any]]]) -> Callable[[float], list[dict[str, Any]]]:
    return lambda scale: [one for each in faults for one in each(scale)]


# Retry-After is in real seconds, so what waits for one gets two more seconds than its scaled share.
SCENARIOS: dict[str, Scenario] = {
    "S01": Scenario(fault("status", status=429, retry_after="2", count=1), 2, 0, 20),
    "S02": Scenario(fault("status", status=429), 2, 1),
    "S03": Scenario(fault("status", status=500, count=1), 2, 0),
    "S04": Scenario(fault("status", status=503), 2, 1),
    "S05": Scenario(fault("reset", count=1), 2, 0),
    "S06": Scenario(fault("accept_hang"), 1, 1, 100),
    "S07": Scenario(fault("stall", after_tokens=0, seconds=20), 1, 1, 15, STREAMS),
    "S08": Scenario(fault("cut_mid_stream", after_tokens=40), 1, 1, 100, STREAMS),
    "S09": Scenario(fault("silence", after_tokens=20, seconds=30), 1, 1, 45, STREAMS),
    "S10": Scenario(fault("bad_sse", after_tokens=9), 1, 0, 100, STREAMS),
    "S11": Scenario(fault("no_terminator"), 1, 0, 8, STREAMS),
    "S12": Scenario(fault("context_error"), 1, 1),
    "S13": Scenario(fault("content_policy"), 1, 0),
    "S14": Scenario(
        both(
            fault("cut_mid_stream", after_tokens=40),
            fault("status", status=400, match='"continue_final_message":true', on="b"),
        ),
        1,
        2,
        100,
        STREAMS,
    ),
    "S15": Scenario(fault("status", status=503, lasts_s=60), 0, 0, 100, ("fast", "whole")),
    "S16": Scenario(fault("status", status=503), 2, 1),
}
NAMES = [f"{name}-{mode}" for name, scenario in SCENARIOS.items() for mode in scenario.modes]
SLACK_S = 3.0 if os.environ.get("TURNOUT_FAILOVER_FULL") else 15.0  # e2e/faults plays the same on virtual time


@pytest.fixture(scope="module")
def bench(failover: Any, shared_processes: Any, in_folder: Path) -> Iterator[Any]:
    bench = failover(shared_processes, in_folder, [*NAMES, "healthy"])
    bench.start()
    bench.healthy = asyncio.run(bench.ask("healthy", "fast", "healthy.0"))
    yield bench
    assert bench.stop() == 0


@pytest.fixture(scope="module")
def played(bench: Any) -> dict[str, Any]:
    async def all_at_once() -> list[Any]:
        plays = [
            bench.play(f"{name}-{mode}", scenario.faults(bench.SCALE), mode)
            for name, scenario in SCENARIOS.items()
            for mode in scenario.modes
        ]
        return await asyncio.gather(*plays)

    found = {one.name: one for one in asyncio.run(all_at_once())}
    bench.counts = bench.received()
    return found


def on(bench: Any, name: str, engine: str, number: int = 0) -> int:
    count: int = bench.counts[engine].get(f"{name}.{number}", 0)
    return count


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("S15")])
def test_attempts_and_answer(bench: Any, played: dict[str, Any], name: str) -> None:
    scenario = SCENARIOS[name.split("-", maxsplit=1)[0]]
    answer = played[name].answer
    buffered_rescue = name == "S14-buffered"  # nothing was sent yet: the next attempt is a plain one
    expected_b = 1 if buffered_rescue else scenario.b
    assert (on(bench, name, "a"), on(bench, name, "b")) == (scenario.a, expected_b), answer.raw[-300:]
    assert answer.took_s <= scenario.within_s * bench.SCALE + SLACK_S
    if name.startswith("S13"):
        assert answer.status == 400
        assert answer.error["code"] == "content_policy_violation"
        return
    assert (answer.status, answer.error, answer.finished) == (200, None, True)
    assert answer.text == bench.healthy.text
    assert answer.usage["completion_tokens"] == 60
    assert answer.terminated
    if answer.streamed:
        assert answer.done == (0 if name.startswith("S11") else 1)
        assert len([chunk for chunk in answer.chunks if chunk.get("usage")]) == 1
        roles = [c for chunk in answer.chunks for c in chunk.get("choices", []) if "role" in c["delta"]]
        assert len(roles) == 1


def test_s01_waits_as_long_as_the_engine_asked(played: dict[str, Any]) -> None:
    for mode in ALL:
        assert played[f"S01-{mode}"].answer.took_s >= 1.8


@pytest.mark.parametrize("mode", ["fast", "whole"])
def test_s15_a_returns_within_30_s(bench: Any, played: dict[str, Any], mode: str) -> None:
    one = played[f"S15-{mode}"]
    assert [(answer.status, answer.error, answer.text == bench.healthy.text) for answer in one.answers] == [
        (200, None, True)
    ] * len(one.answers)
    assert one.recovered_after_s is not None, [a.headers.get("x-turnout-endpoint") for a in one.answers]
    assert one.recovered_after_s <= 30.0 * bench.SCALE + SLACK_S
    asked_a = sum(on(bench, one.name, "a", number) for number in range(len(one.answers)))
    assert asked_a < 2 * len(one.answers)


def test_s16_the_model_is_named_as_the_engine_wrote_it(played: dict[str, Any]) -> None:
    assert {chunk["model"] for chunk in played["S16-fast"].answer.chunks} == {"sim"}


def test_fast_streams_stay_incremental(bench: Any, played: dict[str, Any]) -> None:
    """What came before the silence of S09 was with the client long before its end; `buffered` shows nothing till then."""
    fast, buffered = played["S09-fast"].answer, played["S09-buffered"].answer
    silence_s = 20 * bench.SCALE
    assert fast.arrivals[-1] - fast.arrivals[0] >= silence_s
    assert buffered.arrivals[-1] - buffered.arrivals[0] < silence_s


def test_the_joined_stream_is_one_stream(played: dict[str, Any]) -> None:
    for name in ("S08-fast", "S09-fast", "S14-fast"):
        answer = played[name].answer
        assert b": turnout resumed\n\n" in answer.body
        assert len({chunk["id"] for chunk in answer.chunks}) == 1
        assert len({chunk["created"] for chunk in answer.chunks}) == 1


def test_the_ledger_tells_of_both_attempts(bench: Any, played: dict[str, Any]) -> None:
    wanted = {name: played[name].answer.headers["x-turnout-decision"] for name in ("S08-fast", "S04-fast", "S13-fast")}
    rows = _rows(bench, "SELECT call_id, outcome, resumed, attempts_n, tokens_out FROM calls")
    by_id = {row["call_id"]: row for row in rows}
    assert {
        name: (by_id[id_]["outcome"], by_id[id_]["resumed"], by_id[id_]["attempts_n"]) for name, id_ in wanted.items()
    } == {
        "S08-fast": ("completed", 1, 2),
        "S04-fast": ("completed", 0, 3),
        "S13-fast": ("upstream_answered", 0, 1),
    }
    attempts = _rows(
        bench, "SELECT attempt_no, kind, ok, error_kind, tokens_out FROM attempts WHERE call_id = ?", wanted["S08-fast"]
    )
    assert [(a["kind"], a["ok"], a["error_kind"]) for a in attempts] == [("first", 0, "stream_cut"), ("resume", 1, "")]
    assert 35 <= attempts[0]["tokens_out"] <= 42
    assert attempts[1]["tokens_out"] == 60


def _rows(bench: Any, query: str, *values: object) -> list[Any]:
    import time

    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        database = sqlite3.connect(f"file:{bench.database}?mode=ro", uri=True)
        database.row_factory = sqlite3.Row
        found = database.execute(query, values).fetchall()
        database.close()
        if found:
            return found
        time.sleep(0.05)
    return []
