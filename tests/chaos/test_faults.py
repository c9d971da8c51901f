"""Each way an engine can fail, on real sockets: invisible before the first output event, honest after it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

RESERVE = 32
TIMEOUTS = {"first_token_failover_s": 1.5, "first_token_s": 3.0, "stall_s": 1.5, "content_stall_s": 6.0}


class Pair:
    """Two engines; a fault with a count of one strikes whichever is asked first."""

    def __init__(self, processes: Any) -> None:
        self.eventually = processes.eventually
        self.engines = processes.engines(2)
        # A breaker that never opens keeps one test's faults out of the next one's way.
        never = {"consecutive": 1000, "ratio_min": 100_000}
        self.router = processes.serve(self.engines, timeout=TIMEOUTS, breaker=never)

    def fault(self, kind: str, **settings: Any) -> None:
        for engine in self.engines:
            engine.fault(kind, **settings)

    def first_only(self, kind: str, **settings: Any) -> None:
        """Put a fault on one engine, when nothing of an earlier test keeps traffic away from it."""
        assert self.eventually(lambda: self.router.endpoint("e1")["cooldown_s"] == 0)
        self.engines[0].fault(kind, **settings)


@pytest.fixture(scope="module")
def _pair(shared_processes: Any) -> Pair:
    return Pair(shared_processes)


@pytest.fixture
def pair(_pair: Pair) -> Iterator[Pair]:
    yield _pair
    for engine in _pair.engines:
        engine.heal()


def until_struck(pair: Pair, chaos: Any, *, stream: bool) -> Any:
    """Ask until the faulty engine was the first one asked: at most twice, since equals take turns."""
    for number in range(4):
        seen = chaos.one(pair.router.url, stream=stream, number=number)
        if seen.attempts > 1 or seen.error is not None:
            return seen
    pytest.fail("no request met the fault")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "settings", "label"),
    [
        ("status", {"status": 503}, "overloaded"),
        ("status", {"status": 500}, "server_error"),
        ("status", {"status": 429}, "rate_limit"),
        ("status", {"status": 408}, "upstream_408"),
    ],
)
def test_another_engine_answers_when_one_refuses(
    pair: Pair,
    chaos: Any,
    kind: str,
    settings: dict[str, Any],
    label: str,
    stream: bool,  # noqa: FBT001
) -> None:
    pair.first_only(kind, count=1, **settings)
    seen = until_struck(pair, chaos, stream=stream)
    assert (seen.error, seen.finished, seen.attempts, seen.endpoint) == (None, True, 2, "e2")
    row = pair.router.call(seen.decision)
    assert (row["outcome"], row["attempts_n"]) == ("completed", 2)
    attempts = pair.router.attempts(seen.decision)
    assert [(a["attempt_no"], a["replica"], a["kind"], a["error_kind"]) for a in attempts] == [
        (1, "e1", "first", label),
        (2, "e2", "other", ""),
    ]


@pytest.mark.parametrize(("kind", "stream"), [("wrong_length", False), ("cut_mid_stream", True)])
def test_half_an_answer_of_one_engine_is_replaced_by_the_other_s(
    pair: Pair,
    chaos: Any,
    kind: str,
    stream: bool,  # noqa: FBT001 - a parameter
) -> None:
    pair.first_only(kind, count=1, after_tokens=0)
    seen = until_struck(pair, chaos, stream=stream)
    assert (seen.error, seen.finished, seen.attempts, seen.endpoint) == (None, True, 2, "e2")
    assert pair.router.attempts(seen.decision)[0]["error_kind"] == "bad_response"


def test_a_reset_before_the_head_is_invisible(processes: Any, chaos: Any) -> None:
    engines = processes.engines(2)
    router = processes.serve(engines)
    engines[0].fault("restart_same_port", after_requests=1, seconds=0.2)
    seen = [chaos.one(router.url, stream=number % 2 == 0, number=number) for number in range(6)]
    assert [s.error for s in seen] == [None] * 6
    assert [s.attempts for s in seen if s.attempts > 1] == [2]


def test_when_everyone_refuses_the_last_refusal_is_relayed_with_the_shortest_retry_after(
    processes: Any, chaos: Any
) -> None:
    engines = processes.engines(2)
    router = processes.serve(engines)
    for engine, retry_after in zip(engines, ("30", "20"), strict=True):
        engine.fault("status", status=503, retry_after=retry_after)
    for stream in (False, True):
        seen = chaos.one(router.url, stream=stream)
        assert isinstance(seen.error, openai.InternalServerError)
        assert seen.error.status_code == 503
        assert "injected status 503" in str(seen.error)
        headers = seen.error.response.headers
        assert (headers["retry-after"], headers["x-should-retry"], seen.attempts) == ("20", "false", 2)
        assert router.call(seen.decision)["outcome"] == "upstream_answered"


@pytest.mark.parametrize("kind", ["accept_hang", "hang_before_first_byte"])
def test_a_silent_engine_is_given_up_for_the_other(pair: Pair, chaos: Any, kind: str) -> None:
    pair.first_only(kind, count=1, match="Request")
    seen = until_struck(pair, chaos, stream=True)
    assert (seen.error, seen.finished, seen.attempts, seen.endpoint) == (None, True, 2, "e2")
    assert pair.router.attempts(seen.decision)[0]["error_kind"] == "timeout_first_token"


@pytest.mark.parametrize("kind", ["cut_mid_stream", "reset_mid_stream"])
def test_a_stream_cut_in_the_middle_is_an_error_never_a_clean_end(pair: Pair, chaos: Any, kind: str) -> None:
    pair.fault(kind, after_tokens=10, count=1)
    seen = chaos.one(pair.router.url, stream=True)
    assert isinstance(seen.error, openai.APIError), seen.error
    assert seen.began
    assert not seen.finished
    row = pair.router.call(seen.decision)
    assert (row["outcome"], row["class"], row["error_kind"], row["committed"]) == (
        "stream_interrupted",
        "upstream",
        "stream_cut",
        1,
    )
    assert 0 < row["tokens_out"] <= 12
    assert row["usage_source"] == "estimated"


def test_a_stream_that_stalls_in_the_middle_is_an_error_in_band(pair: Pair, chaos: Any) -> None:
    pair.fault("stall", after_tokens=10, count=1, seconds=30)
    seen = chaos.one(pair.router.url, stream=True)
    assert isinstance(seen.error, openai.APIError)
    assert seen.began
    assert pair.router.call(seen.decision)["error_kind"] == "timeout_stall"
    assert pair.eventually(lambda: sum(engine.state["running"] for engine in pair.engines) == 0)


def test_a_malformed_event_is_dropped_and_the_stream_goes_on(pair: Pair, chaos: Any) -> None:
    pair.fault("bad_sse", after_tokens=5, count=1)
    seen = chaos.one(pair.router.url, stream=True)
    assert (seen.error, seen.finished, seen.attempts) == (None, True, 1)


def test_half_an_answer_is_never_delivered(pair: Pair, chaos: Any) -> None:
    pair.fault("wrong_length")
    seen = chaos.one(pair.router.url, stream=False)
    assert isinstance(seen.error, openai.InternalServerError)
    assert (seen.error.status_code, seen.error.code) == (502, "upstream_bad_response")


def test_nothing_is_left_open_after_all_this(pair: Pair, chaos: Any) -> None:
    async def burst() -> list[Any]:
        async with chaos.client(pair.router.url) as client:
            return await asyncio.gather(*(chaos.ask(client, n, stream=n % 2 == 0, tokens=5) for n in range(20)))

    seen = asyncio.run(burst())
    assert [s.error for s in seen] == [None] * 20
    assert pair.eventually(lambda: all(pair.router.endpoint(e.name)["in_flight"] == 0 for e in pair.engines))
    assert [pair.router.endpoint(e.name)["pending_prefill_tokens"] for e in pair.engines] == [0, 0]


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_running_out_of_file_descriptors_cuts_no_stream_and_spins_no_loop(processes: Any, chaos: Any) -> None:
    """L7, F11: accepting pauses; who comes meanwhile waits in the backlog and is served when there is room again."""
    router = processes.serve(processes.engines(1), probe={"interval_s": 600.0})
    pid = router.child.pid
    body = json.dumps({"model": "sim", "messages": [{"role": "user", "content": "Is there a descriptor left?"}]})
    health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"

    async def story(kept: http.client.HTTPConnection) -> tuple[float, int, Any]:
        kept.request("GET", "/health")
        kept.getresponse().read()
        async with chaos.client(router.url) as client:
            long = asyncio.create_task(chaos.ask(client, 1, stream=True, tokens=250))
            await asyncio.to_thread(processes.eventually, lambda: router.endpoint("e1")["in_flight"])
            before, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            most = open_files(pid) + RESERVE + 5
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, hard))
            await asyncio.sleep(0.3)  # the limit is looked at with the deadlines
            crowd = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", router.port) for _ in range(40)))
            used, since = cpu_s(pid), time.monotonic()
            await asyncio.sleep(0.7)
            kept.request("POST", "/v1/chat/completions", body)
            answered = await asyncio.to_thread(kept.getresponse)
            assert answered.status == 200, answered.read()  # the reserve is for engines
            busy = (cpu_s(pid) - used) / (time.monotonic() - since)
            left = most - open_files(pid)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (before, hard))
            for reader, writer in crowd:
                writer.write(health)
                assert (await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)).startswith(b"HTTP/1.1 200")
                writer.close()
            return busy, left, await long

    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", router.port, timeout=10)) as kept:
        busy, left, seen = asyncio.run(story(kept))
    assert 0 < left <= RESERVE  # they were scarce, and never gone
    assert busy < 0.3  # the stream alone costs a little
    assert (seen.error, seen.finished) == (None, True)
    assert router.endpoint("e1")["unreachable"] is False
    assert chaos.one(router.url, stream=False).error is None
