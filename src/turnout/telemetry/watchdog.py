"""Tells where the event loop stands when it stands still: a thread that hears its beats (faults F68).

One loop serves everybody, so code of ours that blocks it stops all streams at once, and afterwards nobody can say why.
The thread writes the stacks while it happens. A process that was suspended as a whole is nobody's fault: then the
thread has slept, too.
"""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import threading
import time
from collections.abc import Callable

LIMIT_S = 2.0
_LOOKS = 4.0


class Watchdog:
    """Watches the loop it was started on.

    Args:
        report: hears for how many seconds the loop has not run, once per standstill, on the thread.
        limit_s: that is too long.
        dump: writes the stacks of all threads.

    """

    def __init__(
        self,
        report: Callable[[float], None],
        limit_s: float = LIMIT_S,
        dump: Callable[[], None] = lambda: faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True),
    ) -> None:
        self._report, self._dump = report, dump
        self._limit_s = limit_s
        self._beat_s = time.monotonic()
        self._told = False
        self._ended = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.blocked_total = 0

    def start(self) -> None:
        """Begin to watch the running loop."""
        self._beat(asyncio.get_running_loop())
        threading.Thread(target=self._watch, name="turnout-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()

    def look(self, now: float, slept_s: float) -> None:
        """Compare the last beat with the time; `slept_s` is how long this thread has not looked."""
        if slept_s > self._limit_s:  # the whole process was suspended
            self._beat_s = now
        still_s = now - self._beat_s
        if still_s <= self._limit_s:
            self._told = False
        elif not self._told:
            self._told = True
            self.blocked_total += 1
            self._dump()
            self._report(still_s)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat_s = time.monotonic()
        self._timer = loop.call_later(self._limit_s / _LOOKS, self._beat, loop)

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(self._limit_s / _LOOKS):
            now = time.monotonic()
            self.look(now, now - before)
            before = now
