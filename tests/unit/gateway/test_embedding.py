"""The embedder's limits: whatever it does, each text ends once, in time, with a vector or the name of a cause."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest

from turnout.core.selection.arrays import Floats32
from turnout.core.selection.embedder import NoText
from turnout.core.selection.selection import EmbedFailure
from turnout.gateway.embedding import Embedded, Embedding

UNIT = np.array([0.6, 0.8], dtype=np.float32)


class Scripted:
    """An embedder of two dimensions that does what it is told."""

    id, dim = "scripted", 2

    def __init__(self, does: Callable[[str], object], *, inline: bool = False) -> None:
        self._does, self.inline = does, inline

    def embed(self, text: str) -> Floats32:
        return self._does(text)  # type: ignore[return-value]


def raising(error: BaseException) -> Callable[[str], object]:
    def does(_: str) -> object:
        raise error

    return does


BAD: list[tuple[Callable[[str], object], EmbedFailure]] = [
    (raising(NoText("none")), EmbedFailure.NO_TEXT),
    (raising(RuntimeError("broken")), EmbedFailure.EMBED_ERROR),
    (lambda _: np.ones(3, dtype=np.float32), EmbedFailure.EMBED_INVALID),
    (lambda _: np.array([np.nan, 1.0], dtype=np.float32), EmbedFailure.EMBED_INVALID),
    (lambda _: np.array([np.inf, 1.0], dtype=np.float32), EmbedFailure.EMBED_INVALID),
    (lambda _: np.zeros(2, dtype=np.float32), EmbedFailure.EMBED_INVALID),
    (lambda _: np.array([1.1, 0.0], dtype=np.float32), EmbedFailure.EMBED_INVALID),
    (lambda _: [0.6, 0.8], EmbedFailure.EMBED_INVALID),
    (lambda _: None, EmbedFailure.EMBED_INVALID),
]


@pytest.mark.parametrize(("does", "cause"), BAD)
def test_RecoversFromEmbedPanic(does: Callable[[str], object], cause: EmbedFailure) -> None:
    assert Embedding(Scripted(does, inline=True)).now("x") is cause
    assert asyncio.run(started(Embedding(Scripted(does)))) == [cause]


async def started(embedding: Embedding, texts: int = 1, within_s: float = float("inf")) -> list[Embedded]:
    """What came of some texts that were given at once, in the order of their ends."""
    ended: list[Embedded] = []
    over = asyncio.Event()

    def done(result: Embedded) -> None:
        ended.append(result)
        if len(ended) == texts:
            over.set()

    for number in range(texts):
        embedding.start(str(number), done, within_s)
    async with asyncio.timeout(10):
        await over.wait()
    return ended


def test_a_vector_comes_back_on_the_loop() -> None:
    [found] = asyncio.run(started(Embedding(Scripted(lambda _: UNIT))))
    assert found is UNIT


def test_ReturnsErrOnEmbedTimeout() -> None:
    gate = threading.Event()

    def hangs(_: str) -> object:
        gate.wait(10)
        return UNIT

    embedding = Embedding(Scripted(hangs), timeout_s=0.02, concurrency=1)
    assert asyncio.run(started(embedding, 3)) == [EmbedFailure.EMBED_TIMEOUT] * 3
    longer = Embedding(Scripted(hangs), timeout_s=60, concurrency=1)
    assert asyncio.run(started(longer, within_s=0.02)) == [EmbedFailure.EMBED_TIMEOUT]
    gate.set()


def test_more_than_may_wait_are_busy_and_nobody_is_told_twice() -> None:
    gate = threading.Event()

    def waits(_: str) -> object:
        gate.wait(10)
        return UNIT

    async def scenario() -> list[Embedded]:
        embedding = Embedding(Scripted(waits), timeout_s=60, concurrency=2, queue_max=3)
        asyncio.get_running_loop().call_later(0.02, gate.set)
        found = await started(embedding, 8)
        await asyncio.sleep(0)
        assert [value is UNIT for value in await started(embedding)] == [True]
        return found

    found = asyncio.run(scenario())
    assert found[:3] == [EmbedFailure.EMBED_BUSY] * 3
    assert [value is UNIT for value in found[3:]] == [True] * 5


def test_at_most_the_allowed_number_runs_at_a_time() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def counts(_: str) -> object:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.002)
        with lock:
            running -= 1
        return UNIT

    asyncio.run(started(Embedding(Scripted(counts), concurrency=2), 20))
    assert most <= 2
