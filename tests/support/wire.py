"""The vocabulary of engine scripts: steps, and the bytes of answers and streams."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.support.client import Client

if TYPE_CHECKING:
    from tests.support.engine import EngineRequest

KEY = "tt-test-key-of-tenant-one"
MODEL = "model-a"


class Gate:
    """A step of a script that waits until the test opens it."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.reached = threading.Event()

    def open(self) -> None:
        self._open.set()
        for loop, waiter in self._waiters:
            loop.call_soon_threadsafe(_resolve, waiter)

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append((loop, waiter))
        self.reached.set()
        if not self._open.is_set():
            await waiter


class Cut:
    """A step that closes the connection: `reset` without a word, else in order."""

    def __init__(self, *, reset: bool = False) -> None:
        self.reset = reset


Step = bytes | Gate | Cut
Script = list[Step]
Player = Callable[["EngineRequest"], Script]


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def chat(**members: object) -> dict[str, object]:
    """A small chat request; None removes a member."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], **members}
    return {name: value for name, value in body.items() if value is not ...}


ANSWER = b'{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}'


def answer(body: bytes = ANSWER, status: int = 200, *lines: bytes, kind: bytes = b"application/json") -> bytes:
    """A whole JSON answer of an engine."""
    head = [b"HTTP/1.1 %d OK" % status, b"Content-Type: " + kind, b"Content-Length: %d" % len(body), *lines, b"", b""]
    return b"\r\n".join(head) + body


def event(content: str | None = None, finish: str | None = None, index: int = 0, **members: object) -> bytes:
    """One event of a chat stream."""
    delta = {"content": content} if content is not None else {}
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    document = {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **members}
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


USAGE_EVENT = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def stream(*events: bytes) -> Script:
    """The script of a whole stream, one chunk per event."""
    return [STREAM_HEAD, *map(chunk, events), b"0\r\n\r\n"]


class Wire:
    """The vocabulary of engine scripts, for tests that take it as a fixture."""

    Gate, Cut = Gate, Cut
    answer = staticmethod(answer)
    event = staticmethod(event)
    chunk = staticmethod(chunk)
    stream = staticmethod(stream)
    chat = staticmethod(chat)
    Client = Client
    ANSWER, USAGE, DONE, STREAM_HEAD = ANSWER, USAGE_EVENT, DONE, STREAM_HEAD
    KEY, MODEL = KEY, MODEL
