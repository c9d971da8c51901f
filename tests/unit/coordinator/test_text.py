"""HTTP answers made of coordinator tokens: mapping of the request, streams, whole answers, refusals, losses, aborts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turnout.coordinator.listener import CoordinatorListener
from turnout.coordinator.text import TextEngines
from turnout.coordinator.tokenizers import ByteTokenizer
from turnout.core.coordinator_options import Affinity, Coordinator
from turnout.engines import megatron as wire
from turnout.engines.megatron_openai import Unsupported, failure_of, read_ask

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ENGINE = b"mp-coord-0"


class Heard:
    """A receiver that keeps everything."""

    def __init__(self) -> None:
        self.status = 0
        self.content_type = ""
        self.bytes = b""
        self.end = ""

    def opened(self, status: int, content_type: str) -> None:
        self.status, self.content_type = status, content_type

    def body(self, payload: bytes) -> None:
        self.bytes += payload

    def ended(self) -> None:
        self.end = "ended"

    def lost(self, reason: str) -> None:
        self.end = reason

    @property
    def events(self) -> list[Any]:
        lines = self.bytes.decode().removesuffix("data: [DONE]\n\n").split("\n\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line]


class Stage:
    """A listener without its socket: what it would send to the engine is kept."""

    def __init__(self) -> None:
        self.now = 100.0
        self.listener = CoordinatorListener(Coordinator(model="m"), Affinity(), clock=lambda: self.now)
        self.sent: list[bytes] = []
        self.listener.attach(ENGINE, lambda send: self.sent.append(send.payload))
        self.say(wire.REGISTRATION)
        self.engines = TextEngines(self.listener, ByteTokenizer(), lambda: self.now)
        self.door = self.listener.door

    def say(self, payload: bytes) -> None:
        self.listener.carry(self.listener.door.on_message([ENGINE, payload], self.now))

    def ask(self, path: str = CHAT, **body: Any) -> tuple[Heard, int | None]:
        heard = Heard()
        body.setdefault(
            "messages" if path == CHAT else "prompt", [{"role": "user", "content": "hi"}] if path == CHAT else "hi"
        )
        number = self.engines.begin(
            self.door.roster.live[ENGINE], path, json.dumps({"model": "m", **body}).encode(), heard
        )
        return heard, number

    @property
    def server_id(self) -> int:
        (number,) = self.door.requests.open
        return number

    def progress(self, text: str) -> None:
        self.say(wire.progressed([{"request_id": self.server_id, "new_tokens": list(text.encode())}]))

    def finish(self, text: str, **fields: Any) -> None:
        item = {"request_id": self.server_id, "status": "COMPLETED", "generated_tokens": list(text.encode()), **fields}
        self.say(wire.replied([item]))


def test_a_chat_streams_from_partial_replies() -> None:
    stage = Stage()
    heard, _ = stage.ask(stream=True, stream_options={"include_usage": True}, max_tokens=9)
    stage.progress("Gr\u00fc"[:2])
    stage.progress("\u00fc")
    stage.finish("Gr\u00fc\u00dfe", num_cached_tokens=3)
    assert (heard.status, heard.content_type[:17], heard.end) == (200, "text/event-stream", "ended")
    assert heard.bytes.endswith(b"data: [DONE]\n\n")
    deltas = [event["choices"][0]["delta"] for event in heard.events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Gr\u00fc\u00dfe"
    assert heard.events[-2]["choices"][0]["finish_reason"] == "stop"
    prompt = len(b"<|user|>hi\n<|assistant|>")
    assert heard.events[-1]["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 7,
        "total_tokens": prompt + 7,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


def test_a_paused_answer_keeps_tokens_and_goes_on_with_one_event() -> None:
    stage = Stage()
    heard, number = stage.ask(stream=True)
    assert number is not None
    stage.progress("ab")
    stage.engines.pause(number)
    before = heard.bytes
    for letter in "cdef":
        stage.progress(letter)
    assert heard.bytes == before
    stage.engines.resume(number)
    assert [event["choices"][0]["delta"].get("content") for event in heard.events] == ["", "ab", "cdef"]
    stage.engines.pause(number)
    stage.progress("g")
    stage.finish("abcdefgh")
    assert [event["choices"][0]["delta"].get("content") for event in heard.events[3:]] == ["gh", None]
    assert heard.end == "ended"
    stage.engines.pause(number)
    stage.engines.resume(number)


def test_a_whole_answer_waits_for_the_final_reply() -> None:
    stage = Stage()
    heard, _ = stage.ask(max_tokens=2)
    stage.finish("ok")
    answer = json.loads(heard.bytes)
    assert answer["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "length"}
    ]
    assert (answer["object"], heard.end) == ("chat.completion", "ended")


def test_completions_take_text_or_tokens() -> None:
    stage = Stage()
    for prompt in ("hi", [104, 105]):
        heard, _ = stage.ask(TEXT, prompt=prompt, stream=True)
        assert stage.sent[-1].startswith(b"\x95\x14")
        stage.finish("!")
        assert [event["choices"][0]["text"] for event in heard.events] == ["!", ""]


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"max_tokens": 5}, {"num_tokens_to_generate": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"num_tokens_to_generate": 6}),
        ({"temperature": 0}, {"top_k": 1, "top_p": 0.0}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"top_k": 4, "top_p": 0.9}, {"top_k": 4}),
        ({"stop": "x"}, {"stop_words": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop_words": ["x", "y"]}),
        ({"ignore_eos": True}, {"termination_id": -1}),
    ],
)
def test_sampling_is_mapped(fields: dict[str, Any], sampling: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", "prompt": "p", **fields}).encode()
    assert read_ask(TEXT, body).sampling == {"num_tokens_to_generate": None, "streaming": False, **sampling}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"max_tokens": "many"}, "max_tokens"),
    ],
)
def test_what_engines_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    stage = Stage()
    heard, number = stage.ask(**fields)
    assert (heard.status, number, heard.end) == (400, None, "ended")
    assert json.loads(heard.bytes)["error"]["param"] == param
    assert not stage.door.requests.open


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(Unsupported, match="prompt"):
        read_ask(TEXT, b'{"prompt": ""}')


def test_cancelling_tells_the_engine_and_leaves_nothing() -> None:
    stage = Stage()
    heard, number = stage.ask(stream=True)
    assert number is not None
    server_id = stage.server_id
    stage.progress("a")
    stage.engines.cancel(number)
    stage.engines.cancel(number)
    assert stage.sent[-1] == wire.abort(server_id)
    assert (heard.end, dict(stage.door.requests.open)) == ("", {})
    assert stage.door.roster.live[ENGINE].open == {}


def test_a_lost_engine_ends_the_answer_and_is_not_replaced_here() -> None:
    stage = Stage()
    heard, _ = stage.ask(stream=True)
    stage.say(wire.DISCONNECT)
    assert heard.end == "engine_lost"
    assert not stage.door.requests.open
    assert not stage.door.requests.pending


def test_failed_replies_are_answers_to_the_caller_or_to_the_router() -> None:
    def failed(kind: str) -> dict[str, Any]:
        event = {"type": kind, "payload": {"type": "MaxSequenceLengthOverflowError", "message": "too long"}}
        return {"status": "FAILED", "events": [event, {"type": "FAIL", "payload": None}]}

    for kind, status in (("ERROR_NONTRANSIENT", 400), ("ERROR_TRANSIENT", 500)):
        stage = Stage()
        heard, _ = stage.ask()
        stage.finish("", **failed(kind))
        assert (heard.status, json.loads(heard.bytes)["error"]["message"]) == (status, "too long")
    assert failure_of({"status": "COMPLETED"}) is None
    assert failure_of({"status": "FAILED"}) == (True, "the engine failed this request")


def test_a_receiver_that_fails_harms_nobody_else() -> None:
    class Broken(Heard):
        def body(self, payload: bytes) -> None:
            raise RuntimeError(f"receiver of {len(payload)} bytes")

    stage = Stage()
    broken = Broken()
    body = json.dumps({"model": "m", "prompt": "hi"}).encode()
    stage.engines.begin(stage.door.roster.live[ENGINE], TEXT, body, broken)
    stage.finish("x")
    assert stage.door.tally.internal_errors == {"listener": 1}
    assert not stage.door.requests.open
    heard, _ = stage.ask()
    stage.finish("ok")
    assert heard.end == "ended"
