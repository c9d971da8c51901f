"""The HTTP skin on real loopback sockets, with the official SDK and with bare bytes."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
import uvloop

from turnout.engines.kv_events import of_rank
from turnout.engines.load_reports import read_loads, read_metrics
from turnout.engines.sglang import kv_source
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

LIMIT_S = 10
MESSAGES: Any = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Tell me more."}]


def with_engine(scenario: Callable[[int], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        server = SimEngineServer(EngineOptions(**{"speed": 20.0, **options}))
        _, port = await server.start()
        try:
            async with asyncio.timeout(LIMIT_S):
                await scenario(port)
        finally:
            await server.stop()

    uvloop.run(main())


def sdk(port: int) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


def bare(method: str, path: str, body: object = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: sim\r\ncontent-length: {len(data)}\r\nconnection: close\r\n\r\n"
    return head.encode() + data


async def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(bare(method, path, body))
    head, _, payload = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(payload) if payload.startswith((b"{", b"[")) else payload.decode()


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "sim", "messages": MESSAGES, "max_tokens": 8, "ignore_eos": True, **more}


def events(payload: bytes) -> list[Any]:
    lines = [line.removeprefix(b"data: ") for line in payload.split(b"\n") if line.startswith(b"data: ")]
    assert lines.pop() == b"[DONE]"
    return [json.loads(line) for line in lines]


def unchunked(payload: bytes) -> bytes:
    out = b""
    while True:
        size, _, payload = payload.partition(b"\r\n")
        if int(size, 16) == 0:
            assert payload == b"\r\n"
            return out
        out, payload = out + payload[: int(size, 16)], payload[int(size, 16) + 2 :]


def test_the_sdk_gets_the_same_text_streamed_and_whole() -> None:
    async def scenario(port: int) -> None:
        async with sdk(port) as client:
            whole = await client.chat.completions.create(model="sim", messages=MESSAGES)
            stream = await client.chat.completions.create(
                model="sim", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            assert chunks[0].choices[0].delta.role == "assistant"
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == whole.choices[0].message.content
            assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
            usage = chunks[-1].usage
            assert usage is not None
            assert whole.usage is not None
            assert usage.completion_tokens == whole.usage.completion_tokens == len(text) // 4

    with_engine(scenario)


def test_the_sdk_reads_completions_embeddings_and_models() -> None:
    async def scenario(port: int) -> None:
        async with sdk(port) as client:
            completion = await client.completions.create(model="sim", prompt="Once", max_tokens=5)
            assert len(completion.choices[0].text) <= 20
            first = await client.embeddings.create(model="sim", input=["one", "two"], dimensions=8)
            again = await client.embeddings.create(model="sim", input="two", encoding_format="float", dimensions=8)
            assert first.data[1].embedding == pytest.approx(again.data[0].embedding, rel=1e-6)
            models = (await client.models.list()).data
            assert [(model.id, model.owned_by) for model in models] == [("sim", "vllm")]

    with_engine(scenario)


def test_usage_reports_cached_tokens_unless_switched_off() -> None:
    async def cached(port: int) -> Any:
        body = {"prompt": "abc " * 40, "max_tokens": 1}
        await ask(port, "POST", "/v1/completions", body)
        _, answer = await ask(port, "POST", "/v1/completions", body)
        return answer["usage"]["prompt_tokens_details"]

    async def reported(port: int) -> None:
        assert await cached(port) == {"cached_tokens": 32}

    async def hidden(port: int) -> None:
        assert await cached(port) is None

    with_engine(reported)
    with_engine(hidden, cached_tokens=False)


def test_a_stream_is_role_then_deltas_then_finish_and_usage_on_request() -> None:
    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}, max_tokens=3)
        writer.write(bare("POST", "/v1/chat/completions", body))
        head, _, payload = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert b"content-type: text/event-stream" in head
        role, *deltas, usage = events(unchunked(payload))
        assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [each["choices"][0]["finish_reason"] for each in deltas] == [None, None, "length"]
        assert [each["usage"]["completion_tokens"] for each in deltas] == [1, 2, 3]
        assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 3)

    with_engine(scenario)


def test_a_continued_final_message_yields_exactly_the_rest() -> None:
    async def scenario(port: int) -> None:
        _, whole = await ask(port, "POST", "/v1/chat/completions", chat(max_tokens=10))
        text = whole["choices"][0]["message"]["content"]
        partial = [*MESSAGES, {"role": "assistant", "content": text[:16]}]
        resumed = chat(messages=partial, max_tokens=6, continue_final_message=True, add_generation_prompt=False)
        _, rest = await ask(port, "POST", "/v1/chat/completions", resumed)
        assert text[:16] + rest["choices"][0]["message"]["content"] == text

    with_engine(scenario)


def test_token_ids_generate_what_their_text_generates() -> None:
    async def scenario(port: int) -> None:
        _, tokens = await ask(port, "POST", "/tokenize", {"model": "sim", "prompt": "Once upon a time"})
        assert tokens["count"] == len(tokens["tokens"])
        _, back = await ask(port, "POST", "/detokenize", {"model": "sim", "tokens": tokens["tokens"]})
        assert back == {"prompt": "Once upon a time"}
        answers = [
            (await ask(port, "POST", "/v1/completions", {"prompt": prompt, "max_tokens": 5}))[1]
            for prompt in ("Once upon a time", tokens["tokens"])
        ]
        assert answers[0]["choices"] == answers[1]["choices"]
        assert answers[0]["usage"]["prompt_tokens"] == tokens["count"]

    with_engine(scenario)


def test_tokenized_messages_count_what_usage_counts() -> None:
    async def scenario(port: int) -> None:
        _, tokens = await ask(port, "POST", "/tokenize", {"model": "sim", "messages": MESSAGES})
        _, answer = await ask(port, "POST", "/v1/chat/completions", chat())
        assert answer["usage"]["prompt_tokens"] == tokens["count"]

    with_engine(scenario)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/chat/completions", {"model": "other", "messages": MESSAGES}, 404, "The model `other` does not exist."),
        ("/v1/chat/completions", chat(n=2), 400, "n = 2: expected 1"),
        ("/v1/chat/completions", chat(max_tokens=200), 400, "maximum context length is 128 tokens"),
        ("/v1/completions", {"prompt": "abc " * 200}, 400, "maximum context length is 128 tokens"),
        ("/v1/completions", {"prompt": ["a", "b"]}, 400, "prompt: expected one string"),
        ("/v1/completions", {"prompt": [1, -1]}, 400, "prompt[1]: expected a token id"),
        ("/v1/chat/completions", {"messages": "no"}, 400, "ValidationError"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "\ud800"}]}, 400, "DecodeError"),
    ],
)
def test_what_cannot_be_served_is_refused_in_the_shape_of_vllm(
    path: str, body: dict[str, Any], status: int, message: str
) -> None:
    async def scenario(port: int) -> None:
        answered, answer = await ask(port, "POST", path, body)
        assert answered == answer["error"]["code"] == status
        assert message in answer["error"]["message"]
        assert set(answer["error"]) == {"message", "type", "param", "code"}

    with_engine(scenario, max_model_len=128)


def test_requests_on_one_connection_are_answered_in_order() -> None:
    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        first = bare("POST", "/v1/chat/completions", chat()).replace(b"connection: close\r\n", b"")
        writer.write(first + bare("GET", "/version"))
        answered = await reader.read()
        writer.close()
        assert answered.index(b"chat.completion") < answered.index(b'"version"')

    with_engine(scenario)


def test_malformed_http_is_refused_and_closed() -> None:
    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"NONSENSE\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()

    with_engine(scenario)


def test_a_closed_connection_ends_its_sequence_and_frees_its_blocks() -> None:
    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(bare("POST", "/v1/chat/completions", chat(stream=True, max_tokens=5000)))
        await reader.readuntil(b"data: ")
        _, before = await ask(port, "GET", "/sim/state")
        assert (before["running"], before["aborted_total"]) == (1, 0)
        assert before["used_blocks"] > 0
        writer.close()
        state = before
        while state["running"] or not state["aborted_total"]:
            _, state = await ask(port, "GET", "/sim/state")
        assert (state["used_blocks"], state["aborted_total"]) == (0, 1)
        assert state["last_abort_at"] > 0
        _, page = await ask(port, "GET", "/metrics")
        assert 'vllm:num_requests_running{engine="0",model_name="sim"} 0.0' in page

    with_engine(scenario)


def test_state_names_requests_by_digest_and_id_and_never_by_content() -> None:
    async def scenario(port: int) -> None:
        async with sdk(port) as client:
            await client.chat.completions.create(
                model="sim", messages=MESSAGES, max_tokens=2, extra_headers={"x-request-id": "r-1"}
            )
            _, state = await ask(port, "GET", "/sim/state")
            assert state["requests"][0]["x-request-id"] == "r-1"
            assert len(state["requests"][0]["sha256"]) == 64
            assert "terse" not in json.dumps(state)

    with_engine(scenario)


@pytest.mark.parametrize(
    ("names", "present"),
    [
        ("new", ["vllm:kv_cache_usage_perc{", "vllm:prefix_cache_hits_total{"]),
        ("old", ["vllm:gpu_cache_usage_perc{", "vllm:gpu_prefix_cache_hits_total{"]),
        ("renamed", ["vllm:renamed_kv_cache_usage_perc{"]),
    ],
)
def test_metrics_use_the_chosen_names(names: str, present: list[str]) -> None:
    async def scenario(port: int) -> None:
        await ask(port, "POST", "/v1/completions", {"prompt": "abc " * 40, "max_tokens": 4, "ignore_eos": True})
        _, page = await ask(port, "GET", "/metrics")
        assert all(name in page for name in present)
        assert "process_start_time_seconds " in page
        if names == "new":
            assert 'vllm:generation_tokens_total{engine="0",model_name="sim"} 4.0' in page
            assert 'vllm:request_success_total{engine="0",model_name="sim",finished_reason="length"} 1.0' in page
            assert 'vllm:inter_token_latency_seconds_count{engine="0",model_name="sim"} 3' in page
            assert 'block_size="16",num_gpu_blocks="32768"' in page

    with_engine(scenario, metric_names=names)


def test_data_parallel_ranks_have_caches_and_series_of_their_own() -> None:
    async def scenario(port: int) -> None:
        for _ in range(2):
            assert (await ask(port, "POST", "/v1/chat/completions", chat(routed_dp_rank=1)))[0] == 200
        asked = await ask(port, "POST", "/v1/chat/completions", chat())
        assert asked[1]["usage"]["prompt_tokens_details"] is None  # rank 0 was free and has never seen it
        _, state = await ask(port, "GET", "/sim/state")
        assert (state["requests_by_rank"], state["requests_total"]) == ([1, 2], 3)
        _, metrics = await ask(port, "GET", "/metrics")
        tokens = [line for line in metrics.split("\n") if line.startswith("vllm:generation_tokens_total")]
        assert [line.split()[1] for line in tokens] == ["8.0", "16.0"]
        assert metrics.count("# TYPE vllm:generation_tokens_total") == 1
        report = read_metrics(metrics.encode(), frozenset(("sim",)))
        assert report is not None
        assert (report.generated_tokens, report.kv_capacity_tokens) == (24, 2 * 64 * 16)
        _, loads = await ask(port, "GET", "/v1/loads")
        assert [load["dp_rank"] for load in loads["loads"]] == [0, 1]
        told = read_loads(json.dumps(loads).encode())
        assert told is not None
        assert (told.running, told.waiting, told.waiting_uncached_tokens) == (0, 0, 0)
        assert (told.kv_usage_ratio, told.kv_capacity_tokens) == (0.0, 2 * 64 * 16)

    with_engine(scenario, dp_size=2, num_blocks=64, dialect="sglang")


def test_ranks_publish_at_the_next_ports_and_need_a_port_that_is_known() -> None:
    assert [of_rank("tcp://*:5557", rank) for rank in (0, 2)] == ["tcp://*:5557", "tcp://*:5559"]
    assert of_rank("ipc:///tmp/kv", 1) == "ipc:///tmp/kv_dp1"
    with pytest.raises(ValueError, match="expected a port"):
        EngineOptions(dp_size=2, kv_events="tcp://127.0.0.1:*")
    with pytest.raises(ValueError, match="dp_size = 2: expected 1 for the role decode"):
        EngineOptions(dp_size=2, role="decode")


def test_server_info_tells_where_events_are_published() -> None:
    async def scenario(port: int) -> None:
        _, info = await ask(port, "GET", "/server_info")
        source = kv_source(json.dumps(info).encode(), "10.0.0.1")
        assert source is not None
        assert source.endpoint.startswith("tcp://127.0.0.1:")
        assert (source.topic, source.ranks, source.block_tokens) == ("kv", 1, 16)

    with_engine(scenario, dialect="sglang", kv_events="tcp://127.0.0.1:*", kv_topic="kv")
