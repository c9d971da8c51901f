"""Both hand-overs between two simulated engines: text, pinned blocks, leases and failures."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from turnout.engines import sglang_bootstrap, vllm_nixl
from turnout.sim.faults import Fault
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

CHAT = "/v1/chat/completions"
BODY = json.dumps(
    {"model": "sim", "messages": [{"role": "user", "content": "tell me of trains " * 12}], "max_tokens": 20}
).encode()


async def ask(port: int, body: bytes, path: str = CHAT) -> tuple[int, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST %b HTTP/1.1\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(body))
    try:
        writer.write(head + body)
        head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    return int(head.split(b" ")[1]), json.loads(answer) if answer else None


Two = Callable[[SimEngineServer, int, SimEngineServer, int], Awaitable[None]]


def between(test: Two, **options: Any) -> None:
    async def run() -> None:
        one = SimEngineServer(EngineOptions(name="p", role="prefill", speed=20.0, **options))
        two = SimEngineServer(EngineOptions(name="d", role="decode", speed=20.0, **options))
        (_, first), (_, second) = await one.start(), await two.start()
        try:
            await test(one, first, two, second)
        finally:
            await one.stop()
            await two.stop()

    uvloop.run(run())


def content(answer: Any) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


async def nixl(first: int, second: int) -> tuple[int, Any]:
    _, offered = await ask(first, vllm_nixl.prefill_body(BODY))
    handover = vllm_nixl.read_answer(json.dumps(offered).encode())
    return await ask(second, vllm_nixl.decode_body(BODY, handover.params))


def rest(server: SimEngineServer) -> tuple[int, ...]:
    state = server.state()
    return state["running"], state["waiting"], state["pinned"], state["offers"], state["used_blocks"]


def test_text_of_either_flow_is_that_of_one_engine_and_nothing_stays_pinned() -> None:
    async def test(p: SimEngineServer, first: int, d: SimEngineServer, second: int) -> None:
        _, alone = await ask(first, BODY)
        _, pulled = await nixl(first, second)
        room = sglang_bootstrap.leg_body(BODY, "127.0.0.1", first, 77)
        # The decode leg comes first: it waits in the room.
        waiting = asyncio.create_task(ask(second, room))
        await asyncio.sleep(0.05)
        (status, offered), (_, met) = await asyncio.gather(ask(first, room), waiting)
        assert status == 200
        assert offered["usage"]["completion_tokens"] == 1
        assert content(alone) == content(pulled) == content(met)
        assert pulled["usage"]["prompt_tokens_details"]["cached_tokens"] == pulled["usage"]["prompt_tokens"] - 1
        assert rest(p) == rest(d) == (0, 0, 0, 0, 0)

    between(test)


def test_an_expired_lease_fails_or_is_recomputed_as_the_policy_says() -> None:
    async def test(p: SimEngineServer, first: int, d: SimEngineServer, second: int) -> None:
        p.inject(Fault(kind="lease_expire"))
        status, answer = await nixl(first, second)
        if d.options.kv_load_failure_policy == "fail":
            assert status == 500
        else:
            assert (status, d.state()["handovers"]["recomputed"]) == (200, 1)
            assert content(answer)
        assert p.state()["handovers"]["expired"] == 1
        assert rest(p) == rest(d) == (0, 0, 0, 0, 0)

    between(test)
    between(test, kv_load_failure_policy="recompute")


def test_blocks_that_nobody_fetches_are_freed_when_the_lease_ends() -> None:
    async def test(p: SimEngineServer, first: int, d: SimEngineServer, second: int) -> None:  # noqa: ARG001
        await ask(first, vllm_nixl.prefill_body(BODY))
        assert p.state()["pinned"] == 1
        await asyncio.sleep(0.3)
        assert rest(p) == (0, 0, 0, 0, 0)

    between(test, kv_lease_s=0.1)


def test_a_room_serves_one_request_and_a_short_prompt_offers_nothing() -> None:
    async def test(p: SimEngineServer, first: int, d: SimEngineServer, second: int) -> None:  # noqa: ARG001
        room = sglang_bootstrap.leg_body(BODY, "127.0.0.1", first, 5)
        one = asyncio.create_task(ask(first, room))
        await asyncio.sleep(0.05)
        assert (await ask(first, room))[0] == 400
        assert (await ask(first, sglang_bootstrap.abort_body(5), "/abort_request"))[0] == 200
        with contextlib.suppress(OSError, IndexError):
            await one
        small = vllm_nixl.prefill_body(b'{"model":"sim","prompt":"hi"}')
        assert (await ask(first, small, "/v1/completions"))[1]["kv_transfer_params"] is None

    between(test)
