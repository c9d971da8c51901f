"""SGLang's own `/generate` on real loopback sockets: alone, in batches, streamed, and as one leg of two."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from turnout.sim.faults import Fault
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

LIMIT_S = 20
TEXT = "Once upon a time there was a railway switch. " * 4
OTHER = "A train leaves the station. " * 4


class Scene:
    """One engine, or a prefill and a decode engine."""

    def __init__(self, *servers: SimEngineServer) -> None:
        self.servers = servers
        self.ports: list[int] = []

    async def send(self, body: object, path: str = "/generate", engine: int = 0, method: str = "POST") -> Any:
        """Open a connection with one request on it; returns reader and writer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[engine])
        head = f"{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        return reader, writer

    async def raw(self, body: object, path: str = "/generate", engine: int = 0, method: str = "POST") -> bytes:
        reader, writer = await self.send(body, path, engine, method)
        try:
            answer: bytes = await reader.read()
        finally:
            writer.close()
        return answer

    async def ask(self, body: object, path: str = "/generate", engine: int = 0, method: str = "POST") -> Any:
        """Status and document."""
        head, _, payload = (await self.raw(body, path, engine, method)).partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), json.loads(payload) if payload else None

    async def events(self, body: dict[str, Any], engine: int = 0) -> list[Any]:
        """Documents of a stream, which has to end with one terminator."""
        head, _, payload = (await self.raw({**body, "stream": True}, engine=engine)).partition(b"\r\n\r\n")
        assert b"content-type: text/event-stream" in head
        lines = [line for line in unchunked(payload).split(b"\n\n") if line]
        assert lines.count(b"data: [DONE]") == 1
        assert lines[-1] == b"data: [DONE]"
        return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]

    def rest(self) -> list[tuple[int, ...]]:
        states = [server.state() for server in self.servers]
        return [(s["running"], s["waiting"], s["pinned"], s["offers"], s["used_blocks"]) for s in states]


def unchunked(payload: bytes) -> bytes:
    pieces = []
    while payload:
        size, _, payload = payload.partition(b"\r\n")
        pieces.append(payload[: int(size, 16)])
        payload = payload[int(size, 16) + 2 :]
    return b"".join(pieces)


def play(script: Callable[[Scene], Awaitable[None]], *roles: str, **options: Any) -> None:
    async def main() -> None:
        given = {"speed": 20.0, "dialect": "sglang", **options}
        scene = Scene(*[SimEngineServer(EngineOptions(name=role, role=role, **given)) for role in roles or ("both",)])  # type: ignore[arg-type]
        try:
            for server in scene.servers:
                scene.ports.append((await server.start())[1])
            async with asyncio.timeout(LIMIT_S):
                await script(scene)
        finally:
            for server in scene.servers:
                await server.stop()

    uvloop.run(main())


def asked(text: object = TEXT, tokens: int = 8, **members: Any) -> dict[str, Any]:
    params = {"max_new_tokens": tokens, "ignore_eos": True, **members.pop("sampling_params", {})}
    return {"text": text, "sampling_params": params, **members}


def test_one_prompt_is_answered_as_a_completion_is_and_finds_the_same_blocks() -> None:
    async def script(scene: Scene) -> None:
        plain = {"prompt": TEXT, "max_tokens": 8, "ignore_eos": True}
        _, completion = await scene.ask(plain, "/v1/completions")
        status, answer = await scene.ask(asked(rid="r-1"))
        assert (status, answer["text"]) == (200, completion["choices"][0]["text"])
        assert len(answer["output_ids"]) == 8
        prompt_tokens = completion["usage"]["prompt_tokens"]
        found = (prompt_tokens - 1) // 16 * 16
        assert answer["meta_info"] == {
            "id": "r-1",
            "finish_reason": {"type": "length", "length": 8},
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 8,
            "cached_tokens": found,
        }
        _, again = await scene.ask(plain, "/v1/completions")
        assert again["usage"]["prompt_tokens_details"] == {"cached_tokens": found}
        assert scene.servers[0].state()["requests_total"] == 3

    play(script)


def test_token_ids_generate_what_their_text_generates() -> None:
    async def script(scene: Scene) -> None:
        _, tokens = await scene.ask({"prompt": TEXT}, "/tokenize")
        _, by_text = await scene.ask(asked())
        _, by_ids = await scene.ask({**asked(None), "input_ids": tokens["tokens"]})
        assert by_ids["text"] == by_text["text"]
        assert by_ids["meta_info"]["prompt_tokens"] == tokens["count"]
        _, batch = await scene.ask({**asked(None), "input_ids": [tokens["tokens"]]})
        assert [each["text"] for each in batch] == [by_text["text"]]

    play(script)


def test_a_batch_is_a_list_in_the_order_of_its_prompts() -> None:
    async def script(scene: Scene) -> None:
        alone = [(await scene.ask(asked(text, tokens)))[1] for text, tokens in ((TEXT, 12), (OTHER, 3))]
        params = [{"max_new_tokens": tokens, "ignore_eos": True} for tokens in (12, 3)]
        status, batch = await scene.ask({"text": [TEXT, OTHER], "sampling_params": params, "rid": ["x", "y"]})
        assert status == 200
        assert [each["text"] for each in batch] == [each["text"] for each in alone]
        assert [each["meta_info"]["id"] for each in batch] == ["x", "y"]
        assert [each["meta_info"]["completion_tokens"] for each in batch] == [12, 3]
        _, named = await scene.ask(asked([TEXT, OTHER], rid="z"))
        assert [each["meta_info"]["id"] for each in named] == ["z_0", "z_1"]

    play(script)


def test_a_stream_repeats_the_whole_text_in_each_event() -> None:
    async def script(scene: Scene) -> None:
        _, whole = await scene.ask(asked(rid="r"))
        events = await scene.events(asked(rid="r"))
        assert [each["meta_info"]["completion_tokens"] for each in events] == list(range(1, 9))
        assert all(later["text"].startswith(sooner["text"]) for sooner, later in itertools.pairwise(events))
        assert [each["meta_info"]["finish_reason"] for each in events[:-1]] == [None] * 7
        whole["meta_info"]["cached_tokens"] = events[-1]["meta_info"]["cached_tokens"]
        assert events[-1] == whole

    play(script)


def test_a_streamed_batch_tells_whose_event_each_is_and_ends_once() -> None:
    async def script(scene: Scene) -> None:
        _, whole = await scene.ask(asked([TEXT, OTHER], 5))
        events = await scene.events(asked([TEXT, OTHER], 5))
        for index in (0, 1):
            own = [each for each in events if each["index"] == index]
            assert len(own) == 5
            assert own[-1]["text"] == whole[index]["text"]
            assert len({each["meta_info"]["id"] for each in own}) == 1
        assert len({each["meta_info"]["id"] for each in events}) == 2

    play(script)


def test_a_text_ends_by_a_stop_string_or_by_itself() -> None:
    async def script(scene: Scene) -> None:
        _, whole = await scene.ask(asked())
        stop = whole["text"][8:12]
        _, stopped = await scene.ask(asked(sampling_params={"stop": [stop]}))
        assert stopped["text"] == whole["text"][: whole["text"].index(stop)]
        assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
        _, ended = await scene.ask({"text": TEXT})
        assert ended["meta_info"]["finish_reason"]["type"] in ("stop", "length")
        assert ended["meta_info"]["completion_tokens"] <= 128
        _, free = await scene.ask({"text": TEXT, "sampling_params": {"max_new_tokens": None}})
        assert free["meta_info"]["finish_reason"] == {"type": "stop", "matched": 2}

    play(script)


REFUSED = [
    ({}, "Either text, input_ids or input_embeds should be provided."),
    ({"text": "a", "input_ids": [1]}, "Either text, input_ids or input_embeds should be provided."),
    ({"text": []}, "prompts = 0: expected 1 to 4096"),
    ({"input_ids": [1, -1]}, "input_ids[1]: expected a token id"),
    ({"input_ids": [[1], ["x"]]}, "input_ids: expected a list of token ids"),
    ({"input_ids": []}, "input_ids: expected a list of token ids"),
    ({"text": "abc " * 200}, "longer than the model's context length (192 tokens)"),
    (asked("a", 500), "Requested token count exceeds the model's maximum context length of 192 tokens."),
    (asked("a", 0), "max_new_tokens must be at least 1, got 0."),
    (asked("a", sampling_params={"n": 2}), "n = 2: expected 1"),
    (asked(["a", "b"], rid=["x"]), "rid has 1 values: expected one for each of 2 prompts"),
    (asked(["a", "b"], rid=["x", "x"]), "Duplicate request ID detected."),
    ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params has 1 values"),
    (asked("a", routed_dp_rank=1), "data-parallel rank = 1: expected 0 to 0"),
]


@pytest.mark.parametrize(("body", "message"), REFUSED)
def test_wrong_values_are_refused_in_the_shape_of_sglang(body: dict[str, Any], message: str) -> None:
    async def script(scene: Scene) -> None:
        status, answer = await scene.ask(body)
        assert (status, set(answer), set(answer["error"])) == (400, {"error"}, {"message"})
        assert message in answer["error"]["message"]
        (told,) = await scene.events(body)  # a stream has begun before SGLang looks at the values
        assert told == answer
        assert scene.rest() == [(0, 0, 0, 0, 0)]

    play(script, max_model_len=192)


@pytest.mark.parametrize("body", [b"{", b'{"text": 5}', b'{"text": "a", "sampling_params": 3}', b"[]"])
def test_a_body_of_another_shape_is_a_bad_request(body: bytes) -> None:
    async def script(scene: Scene) -> None:
        status, answer = await scene.ask(body)
        assert (status, answer.pop("message") != "") == (400, True)
        assert answer == {"object": "error", "type": "Bad Request", "param": None, "code": 400}

    play(script)


def test_the_dialect_of_vllm_has_no_such_path() -> None:
    async def script(scene: Scene) -> None:
        scene.servers[0].inject(Fault(kind="status"))
        assert await scene.ask(asked()) == (404, {"detail": "Not Found"})
        assert scene.servers[0].state()["requests"] == []

    play(script, dialect="vllm")


def test_faults_strike_it_as_any_generation() -> None:
    async def script(scene: Scene) -> None:
        engine = scene.servers[0]
        engine.inject(Fault(kind="status", status=503, count=1, match="/generate"))
        assert await scene.ask(asked()) == (503, {"error": {"message": "injected status 503"}})
        engine.inject(Fault(kind="error_event", status=500, count=2))
        assert await scene.ask(asked()) == (200, {"error": {"message": "injected error 500"}})
        *_, told = await scene.events(asked())
        assert told == {"error": {"message": "injected error 500"}}
        engine.inject(Fault(kind="bad_sse", count=1))
        with pytest.raises(json.JSONDecodeError):
            await scene.ask(asked([TEXT, OTHER]))
        engine.inject(Fault(kind="no_terminator", count=1))
        stream = await scene.raw(asked([TEXT, OTHER], stream=True))
        assert stream.endswith(b"0\r\n\r\n")
        assert b"[DONE]" not in stream
        engine.inject(Fault(kind="cut_mid_stream", after_tokens=2, count=2))
        cut = await scene.raw(asked([TEXT, OTHER], stream=True))
        assert b'"finish_reason":null' in cut
        assert b"[DONE]" not in cut
        assert not cut.endswith(b"0\r\n\r\n")
        half = await scene.raw(asked([TEXT, OTHER]))
        assert half.partition(b"\r\n\r\n")[2].startswith(b'[{"text"')
        assert not half.endswith(b"]")
        assert (await scene.ask(asked([TEXT, OTHER])))[0] == 200
        assert scene.rest() == [(0, 0, 0, 0, 0)]

    play(script)


async def settled(scene: Scene, **state: int) -> None:
    """Ask the first engine for its state until it is this one."""
    known: dict[str, int] = {}
    while any(known.get(name) != value for name, value in state.items()):
        _, known = await scene.ask(b"", "/sim/state", method="GET")


def test_who_leaves_ends_every_generation_of_a_batch() -> None:
    async def script(scene: Scene) -> None:
        for stream in (True, False):
            before = scene.servers[0].state()["aborted_total"]
            _, writer = await scene.send(asked([TEXT, OTHER], 5000, stream=stream))
            await settled(scene, running=2)
            writer.close()
            await settled(scene, running=0, used_blocks=0, aborted_total=before + 2)

    play(script)


def test_a_request_is_aborted_by_the_name_that_it_was_given() -> None:
    async def script(scene: Scene) -> None:
        reader, writer = await scene.send(asked(TEXT, 5000, rid="mine", stream=True))
        await reader.readuntil(b"data: ")
        assert await scene.ask({"rid": "other"}, "/abort_request") == (200, None)
        assert scene.servers[0].state()["running"] == 1
        assert await scene.ask({"rid": "mine"}, "/abort_request") == (200, None)
        with pytest.raises(OSError, match="reset"):
            await reader.read()
        writer.close()
        await settled(scene, running=0, used_blocks=0, aborted_total=1)
        assert await scene.ask({"rid": "mine"}, "/abort_request") == (200, None)

    play(script)


def test_a_data_parallel_rank_is_named_by_either_member() -> None:
    async def script(scene: Scene) -> None:
        for member in ("routed_dp_rank", "data_parallel_rank"):
            assert (await scene.ask({**asked(), member: 1}))[0] == 200
        assert scene.servers[0].state()["requests_by_rank"] == [0, 2]

    play(script, dp_size=2)


def meeting(scene: Scene, room: object, body: dict[str, Any]) -> Any:
    """Both legs at once; returns the answers of prefill and decode engine."""
    leg = {**body, "bootstrap_host": "127.0.0.1", "bootstrap_port": scene.ports[0], "bootstrap_room": room}
    return asyncio.gather(scene.ask(leg), scene.ask(leg, engine=1))


def test_two_legs_of_one_prompt_meet_in_their_room() -> None:
    async def script(scene: Scene) -> None:
        (_, offered), (status, met) = await meeting(scene, 77, asked())
        assert status == 200
        assert offered["meta_info"]["completion_tokens"] == 1
        assert met["meta_info"]["cached_tokens"] == met["meta_info"]["prompt_tokens"] - 1
        _, alone = await scene.ask(asked(), engine=1)
        assert alone["text"] == met["text"]
        assert scene.rest() == [(0, 0, 0, 0, 0)] * 2

    play(script, "prefill", "decode")


@pytest.mark.parametrize("room", [500, [500, 900]])
def test_two_legs_of_a_batch_have_a_room_for_each_prompt(room: object) -> None:
    async def script(scene: Scene) -> None:
        (one, offered), (two, met) = await meeting(scene, room, asked([TEXT, OTHER]))
        assert (one, two) == (200, 200)
        assert [each["meta_info"]["completion_tokens"] for each in offered] == [1, 1]
        alone = [(await scene.ask(asked(text), engine=1))[1]["text"] for text in (TEXT, OTHER)]
        assert [each["text"] for each in met] == alone
        assert scene.servers[0].state()["handovers"]["fetched"] == 2
        assert scene.rest() == [(0, 0, 0, 0, 0)] * 2

    play(script, "prefill", "decode")


def test_streamed_legs_of_a_batch_end_once() -> None:
    async def script(scene: Scene) -> None:
        leg = asked([TEXT, OTHER], bootstrap_host="127.0.0.1", bootstrap_port=scene.ports[0], bootstrap_room=[3, 4])
        offered, met = await asyncio.gather(scene.events(leg), scene.events(leg, engine=1))
        assert sorted(each["index"] for each in offered) == [0, 1]
        assert sorted(each["index"] for each in met) == [0] * 8 + [1] * 8

    play(script, "prefill", "decode")


def test_a_transfer_that_fails_ends_both_legs_of_the_whole_batch() -> None:
    async def script(scene: Scene) -> None:
        scene.servers[0].inject(Fault(kind="transfer_fail", count=1))
        told = {"object": "error", "message": "KV transfer failed", "type": "500", "param": None, "code": 500}
        assert await meeting(scene, [1, 2], asked([TEXT, OTHER])) == [(500, told), (500, told)]
        # The other prompt's fetch may still be on its way to the prefill engine as its answer leaves.
        await settled(scene, running=0, waiting=0, offers=0, pinned=0, used_blocks=0)
        assert scene.rest()[1] == (0, 0, 0, 0, 0)

    play(script, "prefill", "decode")


def test_a_room_that_is_taken_refuses_the_batch_and_frees_what_it_had_begun() -> None:
    async def script(scene: Scene) -> None:
        leg = {"bootstrap_host": "127.0.0.1", "bootstrap_port": scene.ports[0], "bootstrap_room": [5, 5]}
        status, answer = await scene.ask({**asked([TEXT, OTHER]), **leg})
        assert (status, answer) == (400, {"error": {"message": "bootstrap_room 5 is in use"}})
        await settled(scene, running=0, waiting=0, offers=0, pinned=0, used_blocks=0)

    play(script, "prefill")
