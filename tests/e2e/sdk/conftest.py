"""One engine, one router and the real SDK for all tests of this folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import openai
import pytest

KEY = "tt-the-key-of-the-sdk-tests"


class Stack:
    """A router in front of one engine, and clients of it."""

    def __init__(self, processes: Any) -> None:
        self.eventually, self.fetch = processes.eventually, processes.fetch
        (self.engine,) = processes.engines(1)
        digest = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
        # One refusal is one attempt, so that each test sees the engine's own answer.
        self.router = processes.serve([self.engine], key=digest, retry={"attempts_per_model": 1})

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.router.url, api_key=key, max_retries=0, timeout=30.0)


@pytest.fixture(scope="session")
def _stack(shared_processes: Any) -> Stack:
    return Stack(shared_processes)


@pytest.fixture
def stack(_stack: Stack) -> Iterator[Stack]:
    yield _stack
    _stack.engine.heal()


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with stack.client() as client:
        yield client
