"""The failures that a gateway is tested with, as they look on the wire; and how they are asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from turnout.sim.faults import Fault, FaultPlan, parse_fault, parse_header
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

CHAT = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"


class Answer:
    """Everything that came, and whether the connection was reset."""

    def __init__(self, data: bytes, *, reset: bool) -> None:
        self.data = data
        self.reset = reset
        self.head, _, self.body = data.partition(b"\r\n\r\n")

    @property
    def tokens(self) -> int:
        return self.data.count(b'"delta":{"content"') - self.data.count(b"malformed")


async def ask(port: int, *, headers: str = "", stream: bool = True, wait_s: float = 5.0, **more: Any) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    messages = [{"role": "user", "content": "hello"}]
    fields = {"model": "sim", "messages": messages, "max_tokens": 6, "ignore_eos": True, "stream": stream, **more}
    body = json.dumps(fields).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    writer.write(head.encode() + body)
    got, reset = b"", False
    try:
        async with asyncio.timeout(wait_s):
            while piece := await reader.read(65536):
                got += piece
    except ConnectionResetError:
        reset = True
    finally:
        writer.close()
    return Answer(got, reset=reset)


def run(scenario: Callable[[int], Awaitable[None]], *faults: str, name: str = "engine") -> None:
    async def main() -> None:
        parsed = tuple(parse_fault(text) for text in faults)
        server = SimEngineServer(EngineOptions(speed=20.0, name=name, faults=parsed))
        _, port = await server.start()
        try:
            async with asyncio.timeout(10):
                await scenario(port)
        finally:
            await server.stop()

    uvloop.run(main())


def one(*faults: str, **more: Any) -> Answer:
    found: list[Answer] = []

    async def scenario(port: int) -> None:
        found.append(await ask(port, **more))

    run(scenario, *faults)
    return found[0]


def test_reset_comes_before_any_byte() -> None:
    answer = one("kind=reset")
    assert (answer.data, answer.reset) == (b"", True)


def test_garbage_is_no_http() -> None:
    assert one("kind=garbage").data.startswith(b"SSH-")


def test_html_looks_like_success() -> None:
    answer = one("kind=html")
    assert answer.data.startswith(b"HTTP/1.1 200 ")
    assert b"text/html" in answer.head


def test_empty_is_a_stream_without_events() -> None:
    assert one("kind=empty").body == b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("kind", "code"),
    [("context_error", "context_length_exceeded"), ("content_policy", "content_policy_violation")],
)
def test_client_errors_have_the_code_that_providers_use(kind: str, code: str) -> None:
    answer = one(f"kind={kind}")
    assert answer.data.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.body)["error"]["code"] == code


def test_silence_ends_with_a_close_and_without_a_terminator() -> None:
    answer = one("kind=silence,after_tokens=2,seconds=0.05")
    assert (answer.tokens, DONE in answer.body, answer.body.endswith(b"0\r\n\r\n")) == (2, False, False)


def test_a_late_first_token_has_an_early_head() -> None:
    async def scenario(port: int) -> None:
        with pytest.raises(TimeoutError):
            await ask(port, wait_s=0.1)
        answer = await ask(port, wait_s=5.0)
        assert answer.tokens == 6

    run(scenario, "kind=stall,after_tokens=0,seconds=0.3")


def test_half_close_still_listens() -> None:
    answer = one("kind=half_close,after_tokens=3")
    assert (answer.tokens, answer.reset, DONE in answer.body) == (3, False, False)


@pytest.mark.parametrize("stream", [True, False])
def test_a_trickle_is_slow_but_whole(stream: bool) -> None:  # noqa: FBT001
    answer = one("kind=trickle,factor=100000", stream=stream)
    if stream:
        sizes = answer.body.split(b"\r\n")[::2]
        assert set(sizes[:-2]) == {b"1"}
        assert DONE in b"".join(answer.body.split(b"\r\n")[1::2])
    else:
        assert json.loads(answer.body)["usage"]["completion_tokens"] == 6


def test_an_error_can_hide_in_a_success() -> None:
    answer = one("kind=error_event,after_tokens=2,status=503")
    assert answer.data.startswith(b"HTTP/1.1 200 ")
    assert (answer.tokens, b"overloaded_error" in answer.body, DONE in answer.body) == (2, True, False)


def test_a_missing_terminator_misses_nothing_else() -> None:
    answer = one("kind=no_terminator", stream_options={"include_usage": True})
    assert (answer.tokens, DONE in answer.body, answer.body.endswith(b"0\r\n\r\n")) == (6, False, True)
    assert b'"finish_reason":"length"' in answer.body
    assert b'"usage":{' in answer.body


@pytest.mark.parametrize("stream", [True, False])
def test_extra_bytes_follow_a_complete_answer(stream: bool) -> None:  # noqa: FBT001
    answer = one("kind=extra_bytes", stream=stream)
    assert answer.body.endswith(b'{"trailing":"bytes that nobody announced"}')


def test_a_request_can_ask_for_its_own_failure() -> None:
    async def scenario(port: int) -> None:
        struck = await ask(port, headers="x-sim-fault: kind=status,status=429\r\n")
        assert struck.data.startswith(b"HTTP/1.1 429 ")
        assert (await ask(port)).data.startswith(b"HTTP/1.1 200 ")
        cut = await ask(port, headers="x-sim-fault: kind=cut_mid_stream,after_tokens=2;kind=slow\r\n")
        assert cut.tokens == 2
        wrong = await ask(port, headers="x-sim-fault: kind=nonsense\r\n")
        assert wrong.data.startswith(b"HTTP/1.1 400 ")

    run(scenario)


def test_a_header_can_mean_one_engine_of_several() -> None:
    async def scenario(port: int) -> None:
        for name, status in (("e1", b"503"), ("e2", b"200")):
            answer = await ask(port, headers=f"x-sim-fault: kind=status,status=503,engine={name}\r\n")
            assert answer.data.split()[1] == status

    run(scenario, name="e1")


def test_faults_last_and_flap() -> None:
    now = [100.0]
    flap, once = Fault(kind="status", lasts_s=5, every_s=10), Fault(kind="reset", lasts_s=60)
    plan = FaultPlan(0, (flap, once), clock=lambda: now[0])
    seen = []
    for now[0] in (100.0, 104.9, 105.0, 109.9, 110.0, 114.9, 115.0, 160.0):
        seen.append((plan.draw("status") is not None, plan.draw("reset") is not None))
    assert seen == [
        (True, True), (True, True), (False, True), (False, True), (True, True), (True, True), (False, True), (True, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["kind", "kind=status,every_s=0", "kind=status,lasts_s=-1", ";".join(["kind=reset"] * 65)]
)
def test_a_wrong_header_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"fault|faults"):
        parse_header(text)
