"""The one event loop of routers and engines, on a thread; tests run beside it and block on conditions."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop
from tests.support.client import PATIENCE_S, Client

T = TypeVar("T")


class Loop:
    """The event loop that routers and engines run on."""

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(2 * PATIENCE_S)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def connect(self, port: int) -> Client:
        return Client(port)

    def eventually(self, holds: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if self.call(holds):
                return True
        return False

    def call(self, function: Callable[[], T]) -> T:
        async def work() -> T:
            return function()

        return self.run(work())

    def settle(self) -> None:
        """Let the loop end its round; nothing to do in one of its own callbacks."""
        if threading.current_thread() is not self._thread:
            self.call(bool)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()


def until(loop: Loop, told: threading.Condition, holds: Callable[[], bool]) -> bool:
    """Wait for what happens on the loop: beside it, or, where it runs in this thread, by running it."""
    if not isinstance(loop, Loop):
        return bool(loop.eventually(holds))
    with told:
        return told.wait_for(holds, PATIENCE_S)
