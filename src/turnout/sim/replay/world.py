"""A fleet on virtual time: arrivals, steps of engines, load reports, KV events and faults, in order of their instants.

Nothing here decides anything: routers hold the live core, engines are the model. Equal options, trace and seed give
the same history to the last bit, since every tie is broken by the order of asking and every chance by a seeded draw.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from turnout.core.scheduling.decision import Decision
from turnout.sim.replay.arrivals import Arrivals
from turnout.sim.replay.engine import ReplayEngine
from turnout.sim.replay.options import Fault, ReplayOptions
from turnout.sim.replay.record import Job, Record, record_of
from turnout.sim.replay.router import EngineFacts, Router
from turnout.sim.replay.sequence import Sequence
from turnout.sim.replay.trace import Trace

_PROBE_S = 2.0
_PROGRESS_EVERY = 256
_PREFILLING, _DECODING = 1, 2

Handler = Callable[[Any], None]
Progress = Callable[[int], None]


class World:
    """One run. `run` returns what happened; `progress` hears how many requests have ended so far."""

    def __init__(
        self, trace: Trace, options: ReplayOptions, policy: str, seed: int, progress: Progress | None = None
    ) -> None:
        self.now = 0.0
        self.options = options
        self.trace = trace
        shape = options.shape(trace.block_tokens)
        exact = options.knowledge == "exact"
        self.engines = [
            ReplayEngine(options.shape(trace.block_tokens, place), events=exact) for place in range(options.endpoints)
        ]
        self.alive = [True] * options.endpoints
        self.lives = [0] * options.endpoints
        facts = EngineFacts(shape=shape, block_tokens=trace.block_tokens)
        self.routers = [
            Router(number, self, options, policy, seed * 1009 + number, facts) for number in range(options.routers)
        ]
        self._jobs: list[Job] = []
        self._arrivals = Arrivals(trace, options, seed)
        self._rng = random.Random(seed ^ 0x5EED)
        self._heap: list[tuple[float, int, Handler, Any]] = []
        self._serial = 0
        self._open = 0
        self._ended = 0
        self._event_numbers = [0] * options.endpoints
        self._progress = progress
        self._spread_sum = 0.0
        self._busy = -1  # number of the engine whose step is being applied

    def run(self) -> Record:
        """Live through the whole trace."""
        for at, request, session in self._arrivals.start():
            self.call_at(at, self._arrive, (request, session))
        for fault in self.options.faults:
            self.call_at(fault.from_s, self._strike, fault)
        interval = self.options.interval_s
        if interval:
            for router in self.routers:
                # Routers are not in step with one another.
                self.call_at(interval * router.number / len(self.routers), self._scrape, router)
        if any(fault.kind == "dead" for fault in self.options.faults):
            for router in self.routers:
                self.call_at(_PROBE_S, self._probe, router)
        heap = self._heap
        pop = heapq.heappop
        while self._open or self._arrivals.left:
            at, _, handler, argument = pop(heap)
            self.now = at
            handler(argument)
        return self._record()

    def call_at(self, at: float, handler: Handler, argument: Any) -> None:
        """Have a handler called at an instant."""
        self._serial += 1
        heapq.heappush(self._heap, (at, self._serial, handler, argument))

    def open(self, job: Job, number: int) -> bool:
        """Send a request to an engine; False when nobody answers there."""
        if not self.alive[number]:
            return False
        job.engine = number
        request = job.request
        engine = self.engines[number]
        outputs = 1 if job.stage == _PREFILLING else request.output_tokens
        sequence = Sequence(job, request.keys, request.prompt_tokens, outputs, transferred=job.stage == _DECODING)
        shortened = engine.add(sequence, self.now)
        if shortened:
            self._await_step(number)
        elif engine.end_at is None and number != self._busy:
            self._plan(number)
        return True

    def lacks(self, job: Job, number: int) -> int:
        """Tokens of a prompt that an engine does not hold."""
        request, engine = job.request, self.engines[number]
        size = engine.shape.block_tokens
        found = engine.store.found(request.keys, (request.prompt_tokens - 1) // size)
        return request.prompt_tokens - found * size

    def _decode(self, argument: tuple[Job, int]) -> None:
        """The blocks have arrived: the decode leg begins."""
        job, place = argument
        job.stage = _DECODING
        if not self.open(job, place):
            job.router.broken(job, self.now)

    def share(self, origin: Router, job: Job, decision: Decision) -> None:
        """Tell the other routers over the bus what one of them dispatched."""
        for router in self.routers:
            if router is not origin:
                self.call_at(self.now + self.options.bus_delay_s, router.heard, (job, decision, job.attempts))

    def lost(self, job: Job) -> None:
        """A request ends without an answer."""
        job.failed = True
        self._finish(job)

    # -- arrivals -----------------------------------------------------------------------------------------------------

    def _arrive(self, argument: tuple[Any, Any]) -> None:
        request, session = argument
        job = Job(len(self._jobs), request, self.now, session)
        self._jobs.append(job)
        self._open += 1
        self._arrivals.left -= 1
        loads = [engine.load for engine in self.engines]
        mean = sum(loads) / len(loads)
        if mean > 0:
            self._spread_sum += (sum((load - mean) ** 2 for load in loads) / len(loads)) ** 0.5 / mean
        routers = self.routers
        router = routers[0] if len(routers) == 1 else routers[self._rng.randrange(len(routers))]
        router.submit(job)

    def _finish(self, job: Job) -> None:
        job.ended_at = self.now
        self._open -= 1
        self._ended += 1
        if self._progress is not None and self._ended % _PROGRESS_EVERY == 0:
            self._progress(self._ended)
        following = self._arrivals.after(job.session)
        if following is not None:
            self.call_at(
                self.now + min(following.think_s, self.options.think_max_s), self._arrive, (following, job.session)
            )

    # -- engines ------------------------------------------------------------------------------------------------------

    def _plan(self, number: int) -> None:
        if self.engines[number].plan(self.now) is not None:
            self._await_step(number)
        elif self.engines[number].waiting:
            raise AssertionError(f"engine {number} has work and cannot start it at {self.now}")

    def _await_step(self, number: int) -> None:
        end = self.engines[number].end_at
        assert end is not None
        self.call_at(end, self._stepped, number)

    def _stepped(self, number: int) -> None:
        engine = self.engines[number]
        if engine.end_at != self.now:
            return  # the plan was cut short, or the engine died
        firsts, ended = engine.finish()
        self._busy = number  # what is sent to it meanwhile belongs to the next step
        now = self.now
        for sequence in firsts:
            job: Job = sequence.owner
            if job.stage == _PREFILLING:
                continue
            job.first_at = now
            if job.stage != _DECODING:
                job.realised = sequence.cached
            job.router.first_byte(job, now)
        for sequence in ended:
            job = sequence.owner
            if job.stage == _PREFILLING:
                job.realised = sequence.cached
                place, at = job.router.prefilled(job, now)
                self.call_at(at, self._decode, (job, place))
                continue
            job.router.ended(job, now)
            self._finish(job)
        if engine.events:
            self._publish(number)
        if firsts or ended:
            for router in self.routers:
                router.poll(now)
        self._busy = -1
        if self.alive[number]:
            self._plan(number)
            if engine.events:
                self._publish(number)

    def _publish(self, number: int) -> None:
        """Send what the store did since the last time: removals come before additions within a step."""
        store = self.engines[number].store
        stored, removed = store.stored, store.removed
        if not stored and not removed:
            return
        store.stored, store.removed = [], []
        sequence = self._event_numbers[number]
        self._event_numbers[number] = sequence + 1
        for router in self.routers:
            if self.options.event_loss and self._rng.random() < self.options.event_loss:
                continue
            batch = (router, number, self.lives[number], sequence, removed, stored)
            if self.options.event_delay_s:
                self.call_at(self.now + self.options.event_delay_s, self._deliver, batch)
            else:
                self._deliver(batch)

    def _deliver(self, batch: tuple[Router, int, int, int, list[int], list[int]]) -> None:
        router, number, life, sequence, removed, stored = batch
        router.kv_events(number, life, sequence, removed, stored, self.now)

    # -- what routers learn -------------------------------------------------------------------------------------------

    def _scrape(self, router: Router) -> None:
        interval = self.options.interval_s
        router.scrape(self.now)
        following = self.now + interval
        if not self._open and self._heap:
            # Nobody is being served: look again when something happens, still on the grid.
            idle = self._heap[0][0] - self.now
            if idle > interval:
                following = self.now + interval * int(idle / interval)
        self.call_at(following, self._scrape, router)

    def _probe(self, router: Router) -> None:
        router.probe(self.now)
        self.call_at(self.now + _PROBE_S, self._probe, router)

    # -- faults -------------------------------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        number = fault.engine
        engine = self.engines[number]
        if fault.kind == "slow":
            engine.slowness = fault.factor
            self._shorten(number)
        else:
            self.alive[number] = False
            lost = engine.kill()
            for sequence in lost:
                job: Job = sequence.owner
                job.router.broken(job, self.now)
        if fault.until_s != float("inf"):
            self.call_at(fault.until_s, self._heal, fault)

    def _heal(self, fault: Fault) -> None:
        number = fault.engine
        if fault.kind == "slow":
            self.engines[number].slowness = 1.0
            self._shorten(number)
        else:
            self.alive[number] = True
            self.lives[number] += 1
            self._event_numbers[number] = 0

    def _shorten(self, number: int) -> None:
        if self.engines[number].cut(self.now):
            self._await_step(number)

    def _record(self) -> Record:
        record = record_of(self._jobs)
        for engine in self.engines:
            record.gaps.merge(engine.gaps)
        record.steps = sum(engine.steps for engine in self.engines)
        record.preemptions = sum(engine.preemptions for engine in self.engines)
        record.busy_s = [engine.busy_s for engine in self.engines]
        record.spread = self._spread_sum / max(1, len(self._jobs))
        record.ended_s = self.now
        record.refused = self._arrivals.refused
        for router in self.routers:
            router.counted(record)
        return record
