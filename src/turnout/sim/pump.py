"""One timer per step: the model in real time, its tokens handed to the answers that wait for them.

Steps are planned from the end of the previous one, not from the moment the timer fired, so that timer jitter does not
add up and the HTTP engine keeps the pace of the virtual one.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from turnout.sim.engine import EngineModel
from turnout.sim.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.sim.answers import Answer
    from turnout.sim.faults import FaultPlan
    from turnout.sim.kv_publisher import KvPublisher
    from turnout.sim.load_publisher import LoadPublisher
    from turnout.sim.options import EngineOptions
    from turnout.sim.sequence import Work

LAG_MAX_S = 0.1
"""A process that falls further behind than this gives up catching up and plans from the present."""


class Pump:
    """One rank of one incarnation of an engine: model, metrics, and the answers by generation. Lives until `stop`."""

    def __init__(
        self, options: EngineOptions, faults: FaultPlan, clock: Callable[[], float] = time.monotonic, rank: int = 0
    ) -> None:
        self.started_at = time.time()
        self._clock = clock
        self.model = EngineModel(options, rank)
        self.metrics = Metrics(self.model, self.started_at, rank)
        self.last_abort_at: float | None = None
        """Monotonic seconds."""
        self.publisher: KvPublisher | None = None
        if options.kv_events:
            from turnout.sim.kv_publisher import KvPublisher  # loads the ZeroMQ library

            self.publisher = KvPublisher(
                options.kv_events, options.kv_replay, options.kv_topic, options.kv_delay_s, faults
            )
        self._loads: LoadPublisher | None = None
        if options.kv_load:
            from turnout.sim.load_publisher import LoadPublisher  # as above

            self._loads = LoadPublisher(options.kv_load, rank)
        self._faults = faults
        self._answers: dict[int, Answer] = {}
        self._timer: asyncio.TimerHandle | None = None

    def run(self, work: Work, answer: Answer) -> int:
        """Queue a generation whose tokens go to `answer`; returns its id. Raises ValueError when it can never fit."""
        number = self.model.add(work, self._clock())
        self._answers[number] = answer
        if self._timer is None:
            self._begin(self._clock())
        return number

    def abort(self, number: int) -> None:
        """End a generation whose client is gone; one that has ended is ignored."""
        if self._answers.pop(number, None) is not None:
            self.model.abort(number)
            self.last_abort_at = self._clock()

    def stop(self) -> None:
        """No further step, no further token."""
        if self._timer is not None:
            self._timer.cancel()
        self._answers.clear()
        if self.publisher is not None:
            self.publisher.close()
            self.publisher = None
        if self._loads is not None:
            self._loads.close()
            self._loads = None

    def _begin(self, start: float) -> None:
        self._timer = None
        if self.model.idle:
            return
        slow = self._faults.draw("slow")
        self.model.slowness = slow.factor if slow is not None else 1.0
        end = self.model.begin(start)
        if end is not None:
            delay = max(end - self._clock(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self._finish, end)

    def _finish(self, end: float) -> None:
        for event in self.model.finish():
            answer = self._answers.get(event.id)
            if answer is None:
                continue
            if event.finish is not None:
                del self._answers[event.id]
            if not answer.emitted(event):
                self.abort(event.id)
        self.metrics.collect()
        if self.model.journal is not None and self.publisher is not None:
            payload = self.model.journal.take(time.time())
            if payload is not None:
                self.publisher.publish(payload)
        if self._loads is not None:
            self._loads.publish(self.model)
        now = self._clock()
        self._begin(end if now - end < LAG_MAX_S else now)
