"""The demo's clients: a few conversations at once over shared system prompts, on the standard library alone.

A conversation sends its whole history with each turn, as chat clients do; that is what prefix affinity lives on.
Every answer becomes one `Sent`; the reports are made from those (`demo_report`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec

REQUEST_TIMEOUT_S = 20.0
LINE_MAX_BYTES = 1 << 20
MAX_TOKENS = 32
CONVERSATIONS = 6
"""Two system prompts, three conversations each: enough for sharing to show, few enough to finish in three seconds."""
STREAMED = (True, True, False)

_SUPPORT = (
    "You are the support assistant of a railway operator. You answer questions about tickets, seats, refunds and "
    "delays. Be brief and polite, quote the rule you rely on by its number, and never invent a connection. "
)
_RULES = " ".join(
    f"Rule {n}: a ticket of class {n % 4 + 1} bought {n * 2} days ahead may be returned until {n + 1} hours before "
    f"departure for {100 - 5 * n} percent of its price; the fee for another train on the same day is {n} euro."
    for n in range(1, 13)
)
_TUTOR = (
    "You are a patient programming tutor. You explain one idea at a time with a small example in Python, you ask the "
    "learner to predict what it prints, and you never give away the solution of an exercise. "
)
_SYLLABUS = " ".join(
    f"Lesson {n}: chapter {n} introduces {topic}; learners read {n * 3} pages, solve {n + 2} exercises and explain "
    f"one of them aloud before lesson {n + 1} begins."
    for n, topic in enumerate(
        ("values", "names", "functions", "lists", "loops", "dictionaries", "files", "classes", "tests", "modules"), 1
    )
)
SYSTEM_PROMPTS = (_SUPPORT + _RULES, _TUTOR + _SYLLABUS)
QUESTIONS = (
    (
        "May I return my ticket?",
        "And if I leave a day later?",
        "What does that cost?",
        "Is a seat included?",
        "Thanks!",
    ),
    ("What is a list?", "How do I walk over it?", "What does this print?", "And backwards?", "Which lesson is next?"),
)


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """One request as its client saw it. `error` "" means a complete answer; None is unknown."""

    endpoint: str
    decision: str
    stream: bool
    e2e_s: float
    ttft_s: float | None = None
    tokens_in: int | None = None
    tokens_cached: int | None = None
    text: str = ""
    error: str = ""


class Conversation(msgspec.Struct, frozen=True):
    """Who says what: a system prompt, the user's turns, and whether the answers are streamed."""

    system: str
    questions: tuple[str, ...]
    stream: bool


def conversations() -> tuple[Conversation, ...]:
    """The mixed workload: two system prompts in turn, 3 to 5 turns each, two streams to one plain answer."""
    return tuple(
        Conversation(SYSTEM_PROMPTS[n % 2], QUESTIONS[n % 2][: 3 + n % 3], stream=STREAMED[n % 3])
        for n in range(CONVERSATIONS)
    )


class Client:
    """Sends chat completions to one address, one connection per request."""

    def __init__(self, host: str, port: int, key: str, model: str) -> None:
        self._host = host
        self._port = port
        self._key = key
        self._model = model

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a small page; (0, b"") when nobody answers."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S), self._exchange("GET", path, b"") as (head, reader):
                return head.status, b"".join([part async for part in _body(head, reader)])
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            return 0, b""

    async def chat(self, messages: list[dict[str, str]], *, stream: bool) -> Sent:
        """One turn. Never raises: what goes wrong stands in `error`."""
        fields: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "max_tokens": MAX_TOKENS,
            "stream": stream,
        }
        if stream:
            fields["stream_options"] = {"include_usage": True}
        started = time.perf_counter()
        head = Head(0, {})
        answer = _Answer()
        error = ""
        try:
            async with (
                asyncio.timeout(REQUEST_TIMEOUT_S),
                self._exchange("POST", "/v1/chat/completions", msgspec.json.encode(fields)) as (head, reader),
            ):
                async for part in _body(head, reader):
                    answer.feed(part, streamed=stream and head.status == 200, now=time.perf_counter())  # noqa: PLR2004
            error = answer.finish(head.status, streamed=stream)
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, msgspec.MsgspecError) as exc:
            error = f"{type(exc).__name__}: {exc}"
        return Sent(
            endpoint=head.headers.get("x-turnout-endpoint", ""),
            decision=head.headers.get("x-turnout-decision", ""),
            stream=stream,
            e2e_s=time.perf_counter() - started,
            ttft_s=answer.first_at - started if answer.first_at is not None else None,
            tokens_in=answer.usage.prompt_tokens if answer.usage else None,
            tokens_cached=_cached(answer.usage),
            text=answer.text,
            error=error,
        )

    @contextlib.asynccontextmanager
    async def _exchange(self, method: str, path: str, body: bytes) -> AsyncIterator[tuple[Head, asyncio.StreamReader]]:
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=LINE_MAX_BYTES)
        try:
            head = (
                f"{method} {path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\nauthorization: Bearer {self._key}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
            yield await _head(reader), reader
        finally:
            writer.close()


async def converse(client: Client, plan: Conversation, deadline: float, heard: Callable[[Sent], None]) -> None:
    """Hold one conversation; no turn begins after `deadline` (monotonic seconds), none after an error."""
    messages = [{"role": "system", "content": plan.system}]
    for question in plan.questions:
        if time.monotonic() >= deadline:
            return
        messages.append({"role": "user", "content": question})
        sent = await client.chat(list(messages), stream=plan.stream)
        heard(sent)
        if sent.error:
            return
        messages.append({"role": "assistant", "content": sent.text})


class Head(msgspec.Struct, frozen=True):
    """Status and headers of a response, names in lower case."""

    status: int
    headers: dict[str, str]


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Text | None = None
    message: _Text | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, Any] | None = None


class _Answer:
    """Text, usage and first-token time of one answer, fed with its bytes in any cut."""

    def __init__(self) -> None:
        self.first_at: float | None = None
        self.usage: _Usage | None = None
        self._texts: list[str] = []
        self._rest = b""
        self._done = False
        self._error = ""

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def feed(self, part: bytes, *, streamed: bool, now: float) -> None:
        self._rest += part
        if streamed:
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    self._event(line[5:].strip(), now)

    def finish(self, status: int, *, streamed: bool) -> str:
        """What was wrong with the answer, "" for nothing."""
        if status != 200 or not streamed:  # noqa: PLR2004 - the one good status
            document = msgspec.json.decode(self._rest or b"{}", type=_Completion)
            self._take(document)
            if status != 200:  # noqa: PLR2004
                return f"status {status}: {self._error or 'no message'}"
        elif not self._done and not self._error:
            return "the stream ended without [DONE]"
        return self._error

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        before = len(self._texts)
        self._take(msgspec.json.decode(data, type=_Completion))
        if self.first_at is None and len(self._texts) > before:
            self.first_at = now

    def _take(self, document: _Completion) -> None:
        if document.usage is not None:
            self.usage = document.usage
        if document.error is not None:
            self._error = str(document.error.get("message", "error without message"))
        self._texts.extend(_contents(document))


def _contents(document: _Completion) -> Iterator[str]:
    for choice in document.choices:
        for text in (choice.delta, choice.message):
            if text is not None and text.content:
                yield text.content


def _cached(usage: _Usage | None) -> int | None:
    return usage.prompt_tokens_details.cached_tokens if usage and usage.prompt_tokens_details else None


async def _head(reader: asyncio.StreamReader) -> Head:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    parts = lines[0].split(" ", 2)
    if len(parts) < 2 or not parts[1].isdigit():  # noqa: PLR2004 - version and status
        raise ValueError(f"status line {lines[0][:40]!r}: expected HTTP/1.1 and a status")
    fields = (line.partition(":") for line in lines[1:] if line)
    return Head(int(parts[1]), {name.lower(): value.strip() for name, _, value in fields})


async def _body(head: Head, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The payload as it arrives: chunked, counted or up to the end of the connection."""
    if head.headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
    elif "content-length" in head.headers:
        yield await reader.readexactly(int(head.headers["content-length"]))
    else:
        while part := await reader.read(65536):
            yield part
