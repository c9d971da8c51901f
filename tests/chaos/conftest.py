"""Load through the real SDK: what each client saw, in order, with the instants on the tests' own clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

MODEL = "sim"
TOKENS = 40


class Seen:
    """One request as its client saw it."""

    def __init__(self) -> None:
        self.started_at_ms = time.time_ns() // 1_000_000
        self.decision = ""
        self.endpoint = ""
        self.attempts = 0
        self.text = ""
        self.finished = False
        self.error: Exception | None = None

    @property
    def began(self) -> bool:
        """Whether a byte of an answer had been sent to this client."""
        return bool(self.text)

    def note(self, headers: Any) -> None:
        self.decision = headers.get("x-turnout-decision", "")
        self.endpoint = headers.get("x-turnout-endpoint", "")
        self.attempts = int(headers.get("x-turnout-attempts", "0"))


async def ask(client: openai.AsyncOpenAI, number: int, *, stream: bool, tokens: int = TOKENS) -> Seen:
    """Send one request and never raise."""
    seen = Seen()
    messages: list[Any] = [{"role": "user", "content": f"Request {number} of many, of which none may be lost."}]
    extra = {"ignore_eos": True}
    try:
        if stream:
            raw = await client.chat.completions.with_raw_response.create(
                model=MODEL, messages=messages, max_tokens=tokens, stream=True, extra_body=extra
            )
            seen.note(raw.headers)
            async for chunk in raw.parse():
                for choice in chunk.choices:
                    seen.text += choice.delta.content or ""
                    seen.finished = seen.finished or choice.finish_reason is not None
        else:
            raw_whole = await client.chat.completions.with_raw_response.create(
                model=MODEL, messages=messages, max_tokens=tokens, extra_body=extra
            )
            seen.note(raw_whole.headers)
            seen.text = raw_whole.parse().choices[0].message.content or ""
            seen.finished = True
    except Exception as error:  # noqa: BLE001 - whatever a client sees is what is looked at
        seen.error = error
        if isinstance(error, openai.APIStatusError):
            seen.note(error.response.headers)
    return seen


def new_client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=20.0)


class Load:
    """Clients that ask again and again, every other one with a stream, until told to stop."""

    def __init__(self, url: str, clients: int) -> None:
        self._url, self._clients = url, clients
        self.seen: list[Seen] = []
        self._stopped = False

    async def run(self, story: Callable[[Load], Any]) -> None:
        """Run the load while the story happens beside it."""
        async with new_client(self._url) as client:
            tasks = [asyncio.create_task(self._one(client, number)) for number in range(self._clients)]
            try:
                await story(self)
            finally:
                self._stopped = True
                await asyncio.gather(*tasks)

    def stop(self) -> None:
        self._stopped = True

    async def _one(self, client: openai.AsyncOpenAI, number: int) -> None:
        turn = 0
        while not self._stopped:
            turn += 1
            seen = await ask(client, number * 1000 + turn, stream=(number + turn) % 2 == 0)
            self.seen.append(seen)
            if seen.error is not None:
                await asyncio.sleep(0.05)


class Chaos:
    """The vocabulary of the tests of this folder."""

    Load, ask, client = Load, staticmethod(ask), staticmethod(new_client)

    @staticmethod
    def one(url: str, *, stream: bool, number: int = 1, tokens: int = TOKENS) -> Seen:
        async def go() -> Seen:
            async with new_client(url) as client:
                return await ask(client, number, stream=stream, tokens=tokens)

        return asyncio.run(go())


@pytest.fixture(scope="session")
def chaos() -> type[Chaos]:
    return Chaos
