"""Vectors of texts, whatever the embedder does: it may raise, hang, be busy or answer nonsense, and each has a name.

The built-in embedder runs inline. Any other runs on a few threads of its own, off the loop: at most `concurrency` at a
time, at most `queue_max` waiting, and nobody waits longer than the time-out, waiting included (selection §3). A thread
that hangs keeps its place; it never keeps the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable

from turnout.core.selection.arrays import Floats32
from turnout.core.selection.embedder import Embedder, NoText, is_unit
from turnout.core.selection.selection import EmbedFailure

Embedded = Floats32 | EmbedFailure


class _Job:
    __slots__ = ("done", "over", "text", "timer")

    def __init__(self, text: str, done: Callable[[Embedded], None]) -> None:
        self.text, self.done = text, done
        self.over = False
        self.timer: asyncio.TimerHandle | None = None


class Embedding:
    """Runs one embedder under its limits."""

    def __init__(
        self, embedder: Embedder, *, timeout_s: float = 1.5, concurrency: int = 2, queue_max: int = 64
    ) -> None:
        self.embedder = embedder
        self.inline = embedder.inline
        self._timeout_s, self._concurrency, self._most = timeout_s, concurrency, concurrency + queue_max
        self._open = 0
        self._threads = 0
        self._jobs: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, _Job]] = queue.SimpleQueue()

    def now(self, text: str) -> Embedded:
        """Embed here and now: for the embedder that runs inline."""
        try:
            vector = self.embedder.embed(text)
        except NoText:
            return EmbedFailure.NO_TEXT
        except Exception:  # noqa: BLE001 - an embedder is foreign code: whatever it raises is one cause
            return EmbedFailure.EMBED_ERROR
        return vector if is_unit(vector, self.embedder.dim) else EmbedFailure.EMBED_INVALID

    def start(self, text: str, done: Callable[[Embedded], None], within_s: float = float("inf")) -> None:
        """Embed on a thread; `done` is called on the loop exactly once, with the vector or the cause of none.

        Args:
            text: what to embed.
            done: hears the result.
            within_s: a shorter time-out than the configured one.

        """
        loop = asyncio.get_running_loop()
        if self._open >= self._most:
            loop.call_soon(done, EmbedFailure.EMBED_BUSY)
            return
        self._open += 1
        job = _Job(text, done)
        job.timer = loop.call_later(min(self._timeout_s, within_s), self._late, job)
        if self._threads < min(self._concurrency, self._open):
            self._threads += 1
            # A daemon: an embedder that hangs must not keep the process from ending.
            threading.Thread(target=self._work, name="embed", daemon=True).start()
        self._jobs.put((loop, job))

    def _work(self) -> None:
        while True:
            loop, job = self._jobs.get()
            result = EmbedFailure.EMBED_TIMEOUT if job.over else self.now(job.text)
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
                loop.call_soon_threadsafe(self._end, job, result)

    def _late(self, job: _Job) -> None:
        job.over = True
        job.done(EmbedFailure.EMBED_TIMEOUT)

    def _end(self, job: _Job, result: Embedded) -> None:
        self._open -= 1
        if not job.over:
            job.over = True
            if job.timer is not None:
                job.timer.cancel()
            job.done(result)
