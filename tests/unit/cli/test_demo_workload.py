"""The demo's client against scripted answers: any cut of the bytes reads the same, and nothing it meets raises."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from turnout.cli.demo_workload import Client, Conversation, Sent, conversations, converse

EVENTS = (
    b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
    b": keep-alive\n\n"
    b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"lo"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":10,"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    b"data: [DONE]\n\n"
)
HEAD = b"HTTP/1.1 200 OK\r\nX-Turnout-Endpoint: e1\r\nx-turnout-decision: d1\r\n"
PLAIN = b'{"choices":[{"message":{"content":"Hello"}}],"usage":{"prompt_tokens":10}}'


def chunked(parts: Sequence[bytes]) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return HEAD + b"transfer-encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def counted(body: bytes, head: bytes = HEAD) -> bytes:
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


class Script:
    """A server that gives each connection the same answer and keeps what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        self.asked.append(head + await reader.readexactly(length))
        writer.write(self.answer)
        await writer.drain()
        writer.close()


def talk(script: Script, plan: Conversation, deadline: float = math.inf) -> list[Sent]:
    async def scenario() -> list[Sent]:
        server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
        heard: list[Sent] = []
        async with server:
            port = server.sockets[0].getsockname()[1]
            await converse(Client("127.0.0.1", port, "key", "m"), plan, deadline, heard.append)
        return heard

    return asyncio.run(scenario())


def one(answer: bytes, *, stream: bool = True) -> Sent:
    return talk(Script(answer), Conversation("be brief", ("Hi?",), stream=stream))[0]


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_any_cut_of_a_stream_gives_the_same_answer(size: int) -> None:
    got = one(chunked([EVENTS[at : at + size] for at in range(0, len(EVENTS), size)]))
    assert (got.error, got.text, got.tokens_in, got.tokens_cached) == ("", "Hello", 10, 4)
    assert (got.endpoint, got.decision) == ("e1", "d1")
    assert got.ttft_s is not None
    assert 0 < got.ttft_s <= got.e2e_s


def test_a_plain_answer_has_text_and_usage_and_no_ttft() -> None:
    got = one(counted(PLAIN), stream=False)
    assert (got.error, got.text, got.tokens_in, got.tokens_cached, got.ttft_s) == ("", "Hello", 10, None, None)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (chunked([EVENTS.removesuffix(b"data: [DONE]\n\n")]), "the stream ended without [DONE]"),
        (chunked([b'data: {"error":{"message":"cut"}}\n\n']), "cut"),
        (counted(b'{"error":{"message":"full"}}', b"HTTP/1.1 503 no\r\n"), "status 503: full"),
        (counted(b"", b"HTTP/1.1 500 no\r\n"), "status 500: no message"),
        (counted(b"<html>", b"HTTP/1.1 502 no\r\n"), "DecodeError"),
        (chunked([b"data: {nope}\n\n"]), "DecodeError"),
        (b"SSH-2.0\r\n\r\n", "expected HTTP/1.1"),
        (b"", "IncompleteReadError"),
        (chunked([EVENTS])[:-40], "IncompleteReadError"),
    ],
)
def test_what_goes_wrong_is_a_value(answer: bytes, error: str) -> None:
    assert error in one(answer).error


def test_each_turn_sends_the_whole_history() -> None:
    script = Script(counted(PLAIN))
    heard = talk(script, Conversation("sys", ("one", "two", "three"), stream=False))
    assert len(heard) == 3
    assert [asked.count(b'"role"') for asked in script.asked] == [2, 4, 6]
    assert b"authorization: Bearer key\r\n" in script.asked[0]


def test_no_turn_follows_an_error_or_the_deadline() -> None:
    plan = Conversation("sys", ("one", "two"), stream=False)
    assert len(talk(Script(b""), plan)) == 1
    assert talk(Script(counted(PLAIN)), plan, deadline=0.0) == []


def test_the_workload_shares_system_prompts_and_mixes_streams() -> None:
    plans = conversations()
    assert len({plan.system for plan in plans}) == 2
    assert {plan.stream for plan in plans} == {True, False}
    assert {len(plan.questions) for plan in plans} == {3, 4, 5}
