"""Each HTTP-level fault does on the wire what its name says."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from turnout.sim.faults import KINDS, Fault, FaultPlan, parse_fault
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

LIMIT_S = 10
QUIET_S = 0.1
CHAT = "/v1/chat/completions"
ROLE = b'"delta":{"role"'


class Wire:
    """One engine and bare connections to it."""

    def __init__(self, server: SimEngineServer, port: int) -> None:
        self.server = server
        self.port = port

    async def ask(self, method: str, path: str, body: object = None) -> bytes:
        """All bytes of the answer until the engine closes."""
        reader, writer = await self.send(method, path, body)
        try:
            return await reader.read()
        finally:
            writer.close()

    async def send(
        self, method: str, path: str, body: object = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: sim\r\ncontent-length: {len(data)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + data)
        return reader, writer

    async def chat(self, **more: Any) -> bytes:
        return await self.ask("POST", CHAT, chat(**more))

    async def silent(self, method: str, path: str, body: object = None) -> bytes:
        """What arrives while the engine stays silent; fails when it closes instead."""
        reader, writer = await self.send(method, path, body)
        got = b""
        try:
            async with asyncio.timeout(QUIET_S):
                while piece := await reader.read(65536):
                    got += piece
            message = f"closed after {got!r}"
            raise AssertionError(message)
        except TimeoutError:
            return got
        finally:
            writer.close()


def chat(**more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": "sim", "messages": messages, "max_tokens": 6, "ignore_eos": True, **more}


def with_faults(
    scenario: Callable[[Wire], Awaitable[None]], *faults: str, die: Callable[[], None] | None = None
) -> None:
    async def main() -> None:
        options = EngineOptions(speed=20.0, faults=tuple(parse_fault(text) for text in faults))
        server = SimEngineServer(options, die=die)
        _, port = await server.start()
        try:
            async with asyncio.timeout(LIMIT_S):
                await scenario(Wire(server, port))
        finally:
            await server.stop()

    uvloop.run(main())


def deltas(answer: bytes) -> int:
    return answer.count(b'"delta":{"content"')


def test_status_is_answered_before_the_first_byte_and_counts_down() -> None:
    async def scenario(wire: Wire) -> None:
        refused = [await wire.chat() for _ in range(2)]
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in refused)
        assert b"\r\nretry-after: 7\r\n" in refused[0]
        assert b'"code":503' in refused[0]
        assert (await wire.chat()).startswith(b"HTTP/1.1 200 ")

    with_faults(scenario, "kind=status,status=503,count=2,retry_after=7")


def test_a_match_of_a_path_strikes_that_path_alone() -> None:
    async def scenario(wire: Wire) -> None:
        assert (await wire.ask("GET", "/health")).startswith(b"HTTP/1.1 500 ")
        assert (await wire.chat()).startswith(b"HTTP/1.1 200 ")

    with_faults(scenario, "kind=status,match=/health")


def test_a_match_of_a_text_strikes_the_bodies_that_hold_it() -> None:
    async def scenario(wire: Wire) -> None:
        assert (await wire.chat(user="poison")).startswith(b"HTTP/1.1 500 ")
        assert (await wire.chat(user="bread")).startswith(b"HTTP/1.1 200 ")
        assert (await wire.ask("GET", "/health")).startswith(b"HTTP/1.1 200 ")

    with_faults(scenario, "kind=status,match=poison")


def test_accept_hang_is_silent_on_every_path_but_its_own_door() -> None:
    async def scenario(wire: Wire) -> None:
        assert await wire.silent("POST", CHAT, chat()) == b""
        assert await wire.silent("GET", "/health") == b""
        assert (await wire.ask("DELETE", "/sim/faults")).startswith(b"HTTP/1.1 200 ")
        assert (await wire.chat()).startswith(b"HTTP/1.1 200 ")

    with_faults(scenario, "kind=accept_hang")


def test_hang_before_first_byte_sends_the_head_and_no_body() -> None:
    async def scenario(wire: Wire) -> None:
        got = await wire.silent("POST", CHAT, chat(stream=True))
        assert got.startswith(b"HTTP/1.1 200 ")
        assert got.endswith(b"\r\n\r\n")

    with_faults(scenario, "kind=hang_before_first_byte")


def test_health_lies_while_generations_hang() -> None:
    async def scenario(wire: Wire) -> None:
        assert await wire.silent("POST", CHAT, chat()) == b""
        assert (await wire.ask("GET", "/health")).startswith(b"HTTP/1.1 200 ")

    with_faults(scenario, "kind=health_lies")


def test_stall_leaves_a_gap_after_its_tokens_and_then_goes_on() -> None:
    async def scenario(wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        reader, writer = await wire.send("POST", CHAT, chat(stream=True))
        begun = loop.time()
        early = await reader.readuntil(b'"delta":{"content":')
        early += await reader.readuntil(b"\n\n")
        early += await reader.readuntil(b"\n\n")
        assert deltas(early) == 2
        before_gap = loop.time() - begun
        rest = await reader.read()
        writer.close()
        assert before_gap < 0.2 <= loop.time() - begun
        assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert deltas(early + rest) == 6

    with_faults(scenario, "kind=stall,after_tokens=2,seconds=0.25")


@pytest.mark.parametrize("stream", [True, False])
def test_reset_mid_stream_is_a_reset_after_its_tokens(*, stream: bool) -> None:
    async def scenario(wire: Wire) -> None:
        reader, writer = await wire.send("POST", CHAT, chat(stream=stream))
        got = await until_reset(reader)
        writer.close()
        assert got.startswith(b"HTTP/1.1 200 ")
        assert deltas(got) == (3 if stream else 0)
        assert b"DONE" not in got

    with_faults(scenario, "kind=reset_mid_stream,after_tokens=3")


@pytest.mark.parametrize("after", [0, 3, 99])
def test_cut_mid_stream_closes_without_terminator(after: int) -> None:
    async def scenario(wire: Wire) -> None:
        got = await wire.chat(stream=True)
        assert deltas(got) == min(after, 5)
        assert not got.endswith(b"0\r\n\r\n")
        assert b"DONE" not in got
        assert (ROLE in got) == (after > 0)

    with_faults(scenario, f"kind=cut_mid_stream,after_tokens={after}")


def test_cut_mid_stream_of_a_whole_answer_is_shorter_than_declared() -> None:
    async def scenario(wire: Wire) -> None:
        declared, body = declared_and_body(await wire.chat())
        assert 0 < len(body) < declared

    with_faults(scenario, "kind=cut_mid_stream")


def declared_and_body(answer: bytes) -> tuple[int, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b"content-length: ")[1].split(b"\r\n")[0]), body


def test_bad_sse_is_one_malformed_event_in_a_stream_that_goes_on() -> None:
    async def scenario(wire: Wire) -> None:
        got = await wire.chat(stream=True)
        lines = [line[6:] for line in got.split(b"\n") if line.startswith(b"data: {")]
        broken = [line for line in lines if not line.endswith(b"}")]
        assert len(broken) == 1
        assert lines.index(broken[0]) == 3  # role, two deltas, then this
        assert got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")

    with_faults(scenario, "kind=bad_sse,after_tokens=2")


@pytest.mark.parametrize("stream", [True, False])
def test_wrong_length_declares_more_than_it_sends(*, stream: bool) -> None:
    async def scenario(wire: Wire) -> None:
        declared, body = declared_and_body(await wire.chat(stream=stream))
        assert len(body) < declared
        assert (b"[DONE]" in body) == stream

    with_faults(scenario, "kind=wrong_length")


def test_slow_multiplies_step_times() -> None:
    async def scenario(wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await wire.chat()
        # Six steps of at least 6 ms / 20 · 50.
        assert loop.time() - begun >= 6 * 0.006 / 20 * 50

    with_faults(scenario, "kind=slow,factor=50")


def test_metrics_go_stale_missing_or_zero() -> None:
    running = b'vllm:generation_tokens_total{engine="0",model_name="sim"} '

    async def scenario(wire: Wire) -> None:
        await wire.chat()
        assert running + b"6.0" in await wire.ask("GET", "/metrics")
        wire.server.inject(Fault(kind="metrics_stale"))
        await wire.ask("GET", "/metrics")
        await wire.chat()
        assert running + b"6.0" in await wire.ask("GET", "/metrics")
        wire.server.clear_faults()
        assert running + b"12.0" in await wire.ask("GET", "/metrics")
        wire.server.inject(Fault(kind="metrics_zero"))
        assert running + b"0" in await wire.ask("GET", "/metrics")
        wire.server.clear_faults()
        wire.server.inject(Fault(kind="metrics_missing"))
        page = await wire.ask("GET", "/metrics")
        assert page.startswith(b"HTTP/1.1 200 ")
        assert b"vllm:" not in page

    with_faults(scenario)


def test_refuse_closes_the_listener_until_the_faults_are_cleared_on_the_control_connection() -> None:
    async def scenario(wire: Wire) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        body = b'{"kind":"refuse","seconds":0}'
        writer.write(b"POST /sim/faults HTTP/1.1\r\nhost: sim\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        assert b" 200 " in await reader.readuntil(b"}]}")
        await refused(wire)
        writer.write(b"DELETE /sim/faults HTTP/1.1\r\nhost: sim\r\n\r\n")
        assert b" 200 " in await reader.readuntil(b"}")
        writer.close()
        assert await answers_again(wire)

    with_faults(scenario)


async def until_reset(reader: asyncio.StreamReader) -> bytes:
    got = b""
    try:
        while piece := await reader.read(65536):
            got += piece
    except ConnectionResetError:
        return got
    message = f"closed without a reset after {got!r}"
    raise AssertionError(message)


async def refused(wire: Wire) -> None:
    while True:
        try:
            await wire.ask("GET", "/health")
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue  # it waited in the backlog when the listener closed


async def answers_again(wire: Wire) -> bool:
    while True:
        try:
            return (await wire.ask("GET", "/health")).startswith(b"HTTP/1.1 200 ")
        except ConnectionError:
            continue


def test_exit_after_n_requests_calls_for_death() -> None:
    deaths: list[str] = []

    async def scenario(wire: Wire) -> None:
        for _ in range(2):
            assert (await wire.chat()).startswith(b"HTTP/1.1 200 ")
        assert await wire.silent("POST", CHAT, chat()) == b""

    with_faults(scenario, "kind=exit,after_requests=2", die=lambda: deaths.append("died"))
    assert deaths == ["died"]


def test_exit_of_an_embedded_engine_resets_its_connections_and_refuses_new_ones() -> None:
    async def scenario(wire: Wire) -> None:
        with pytest.raises(ConnectionResetError):
            await wire.chat()
        with pytest.raises(ConnectionRefusedError):
            await wire.ask("GET", "/health")

    with_faults(scenario, "kind=exit")


def test_restart_same_port_is_a_new_incarnation_with_an_empty_prefix_store() -> None:
    async def scenario(wire: Wire) -> None:
        prompt = {"prompt": "abc " * 40, "max_tokens": 1}
        await wire.ask("POST", "/v1/completions", prompt)
        assert b'"cached_tokens":32' in await wire.ask("POST", "/v1/completions", prompt)
        before = started_at(await wire.ask("GET", "/metrics"))
        wire.server.inject(Fault(kind="restart_same_port", seconds=0, after_requests=1))
        await wire.ask("POST", "/v1/completions", prompt)
        with pytest.raises(ConnectionResetError):
            await wire.ask("POST", "/v1/completions", prompt)
        wire.server.faults.clear()
        assert await answers_again(wire)
        assert b'"prompt_tokens_details":null' in await wire.ask("POST", "/v1/completions", prompt)
        assert started_at(await wire.ask("GET", "/metrics")) > before

    with_faults(scenario)


def started_at(page: bytes) -> float:
    return float(page.split(b"\nprocess_start_time_seconds ")[1].split(b"\n")[0])


def test_the_control_door_lists_adds_and_refuses() -> None:
    async def scenario(wire: Wire) -> None:
        added = await wire.ask("POST", "/sim/faults", {"kind": "status", "status": 429, "probability": 0.5})
        assert b'"kind":"status"' in added
        assert b'"struck":0' in await wire.ask("GET", "/sim/faults")
        for bad in ({"kind": "explode"}, {"kind": "stall", "seconds": -1}, {"kind": "stall", "colour": 1}):
            assert (await wire.ask("POST", "/sim/faults", bad)).startswith(b"HTTP/1.1 400 ")
        assert b'{"faults":[]}' in await wire.ask("DELETE", "/sim/faults")

    with_faults(scenario)


def test_probability_is_drawn_from_the_seed() -> None:
    def strikes(seed: int) -> list[bool]:
        plan = FaultPlan(seed, (Fault(kind="status", probability=0.3),))
        return [plan.draw("status") is not None for _ in range(1000)]

    assert strikes(1) == strikes(1)
    assert strikes(1) != strikes(2)
    assert 250 <= sum(strikes(1)) <= 350


def test_every_kind_can_be_written_on_the_command_line() -> None:
    assert [parse_fault(f"kind={kind},count=1,probability=0.5").kind for kind in KINDS] == list(KINDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stall", "expected key=value"),
        ("kind=stal", "Invalid enum value 'stal'"),
        ("kind=stall,seconds=soon", r"seconds"),
        ("kind=status,status=200", "status = 200"),
        ("kind=slow,factor=nan", "factor = nan"),
    ],
)
def test_a_fault_that_cannot_be_read_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_fault(text)
