"""HTTP clients served by coordinator engines: the real router, engine stubs on ZeroMQ, raw HTTP and the OpenAI SDK."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx2 as httpx  # what the SDK itself speaks through
import openai
import pytest
import uvloop

from turnout.app import App
from turnout.config.schema import Config
from turnout.coordinator.client import CoordinatorClient
from turnout.coordinator.engine import Echo, EnginePeer
from turnout.core import options
from turnout.core.coordinator_options import Coordinator

MODEL = "m"


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(40):
            await body()

    uvloop.run(bounded())


async def eventually(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - a condition of another peer has no event
            await asyncio.sleep(0.01)


class House:
    """One router with the door open, and its engines."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.listener = app._coordinator
        self.engines: list[EnginePeer] = []
        self.http = httpx.AsyncClient(base_url=f"http://{app.address}", timeout=30)
        self.sdk = openai.AsyncOpenAI(base_url=f"http://{app.address}/v1", api_key="none", max_retries=0)

    async def add(self, *names: bytes, step_s: float = 0.0) -> None:
        for name in names:
            peer = EnginePeer(self.listener.address, name, Echo(step_s, tokens=16))
            peer.start()
            self.engines.append(peer)
        await eventually(lambda: len(self.app.gateway.fleet.endpoints) == len(self.engines))

    def idle(self) -> bool:
        endpoints = self.app.gateway.fleet.endpoints.values()
        return (
            not self.app.gateway.runs
            and not self.listener.door.requests.open
            and {(e.in_flight, e.pending_prefill_tokens, e.active_tokens) for e in endpoints} <= {(0, 0, 0)}
        )


@contextlib.asynccontextmanager
async def house() -> AsyncIterator[House]:
    config = Config(
        server=options.Server(listen="127.0.0.1:0", admin_listen=""),
        auth=options.Auth(mode="open"),
        ledger=options.Ledger(url=""),
        coordinator=Coordinator(enabled=True, bind="tcp://127.0.0.1:*", model=MODEL, tokenizer="bytes"),
    )
    app = App(config)
    await app.start()
    there = House(app)
    try:
        yield there
    finally:
        await there.http.aclose()
        await there.sdk.close()
        for engine in there.engines:
            engine.close(goodbye=False)
        await app.stop()


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 16, **more}


def test_whole_and_streamed_chats_through_the_sdk() -> None:
    async def script() -> None:
        async with house() as there:
            await there.add(b"mp-coord-0", b"mp-coord-1", step_s=0.001)
            whole = await there.sdk.chat.completions.create(**chat("hello"))
            assert whole.choices[0].message.content == "<|user|>hello\n<|"[:16]
            assert whole.choices[0].finish_reason == "length"
            assert whole.usage is not None
            assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (
                len("<|user|>hello\n<|assistant|>"),
                16,
            )
            text = ""
            stream = await there.sdk.chat.completions.create(**chat("hello"), stream=True)
            async for event in stream:
                text += event.choices[0].delta.content or ""
            assert text == whole.choices[0].message.content
            completion = await there.sdk.completions.create(model=MODEL, prompt="abc", max_tokens=5)
            assert completion.choices[0].text == "abcab"
            await eventually(there.idle)

    run(script)


def test_requests_spread_over_engines_and_count_native_load() -> None:
    async def script() -> None:
        async with house() as there:
            await there.add(b"mp-coord-0", b"mp-coord-1", step_s=0.002)
            answers = await asyncio.gather(
                *(there.http.post("/v1/chat/completions", json=chat(f"q{n}")) for n in range(40))
            )
            assert {answer.status_code for answer in answers} == {200}
            assert min(engine.requests for engine in there.engines) >= 10
            async with CoordinatorClient(there.listener.address) as native:
                held = [native.submit("x" * 30, {"num_tokens_to_generate": 400}) for _ in range(9)]
                await eventually(lambda: len(there.listener.door.requests.open) == 9)
                await asyncio.sleep(0.15)
                busy = {e.name: e.running for e in there.app.gateway.fleet.endpoints.values()}
                assert sum(count or 0 for count in busy.values()) == 9
                for future in held:
                    future.cancel()
            await eventually(there.idle)

    run(script)


def test_a_client_that_leaves_aborts_at_the_engine() -> None:
    async def script() -> None:
        async with house() as there:
            await there.add(b"mp-coord-0", step_s=0.01)
            async with there.http.stream(
                "POST", "/v1/chat/completions", json=chat("long", stream=True, max_tokens=5000)
            ) as answer:
                async for _ in answer.aiter_bytes():
                    break
            await eventually(lambda: there.engines[0].aborts == 1)
            await eventually(there.idle)

    run(script)


def test_a_slow_client_holds_tokens_not_events() -> None:
    async def script() -> None:
        async with house() as there:
            await there.add(b"mp-coord-0", step_s=0.0001)
            host, _, port = there.app.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
            words = 30_000
            body = json.dumps(chat("long", stream=True, max_tokens=words)).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            await eventually(lambda: there.app.gateway.runs)
            (run_of_it,) = there.app.gateway.runs
            await eventually(lambda: not there.listener.door.requests.open)
            held = run_of_it.client._transport.get_write_buffer_size()
            # Each token is an event of some 200 bytes; without the pause 6 MB would lie here.
            assert 0 < held < 1_000_000
            raw = b""
            while not raw.endswith(b"[DONE]\n\n\r\n0\r\n\r\n"):
                raw += await reader.read(65_536)
            assert b'"finish_reason":"length"' in raw
            writer.close()

    run(script)


def test_an_engine_lost_before_its_first_token_is_replaced() -> None:
    async def script() -> None:
        async with house() as there:
            await there.add(b"mp-coord-0", b"mp-coord-1", step_s=0.2)
            asked = asyncio.create_task(there.http.post("/v1/chat/completions", json=chat("x", max_tokens=2)))
            await eventually(lambda: sum(engine.requests for engine in there.engines))
            holder = next(engine for engine in there.engines if engine.requests)
            holder.close()
            answer = await asked
            assert answer.status_code == 200
            assert answer.headers["x-turnout-attempts"] == "2"

    run(script)


def test_an_engine_lost_in_mid_stream_ends_it_in_band() -> None:
    async def script() -> None:
        async with house() as there:
            await there.add(b"mp-coord-0", step_s=0.02)
            raw = b""

            async def read() -> None:
                nonlocal raw
                body = chat("x", stream=True, max_tokens=900)
                async with there.http.stream("POST", "/v1/chat/completions", json=body) as answer:
                    async for part in answer.aiter_bytes():
                        raw += part
                        there.engines[0].close()

            with pytest.raises(httpx.RemoteProtocolError):
                await read()
            assert b'"error"' in raw
            assert b"[DONE]" not in raw

    run(script)


def test_errors_name_what_is_wrong() -> None:
    async def script() -> None:
        async with house() as there:
            empty = await there.http.post("/v1/chat/completions", json=chat("x"))
            assert (empty.status_code, empty.json()["error"]["code"]) == (503, "no_endpoint")
            await there.add(b"mp-coord-0")
            refused = await there.http.post("/v1/chat/completions", json=chat("x", n=3))
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
            unknown = await there.http.post("/v1/chat/completions", json={**chat("x"), "model": "other"})
            assert unknown.status_code == 404
            models = await there.http.get("/v1/models")
            assert [entry["id"] for entry in models.json()["data"]] == [MODEL]
            assert json.loads(refused.text)["error"]["type"] == "invalid_request_error"

    run(script)
