"""The router of the world: what the gateway does with sockets and timers, done on virtual time with the same core.

It notes every broken promise in `violations` at the moment it happens, so that a failure names its instant.
"""

from __future__ import annotations

import msgspec

from turnout.core import options
from turnout.core.admission.gate import Gate
from turnout.core.fleet.ejection import Ejections
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.health import counts_as_failure, makes_progress
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.kit.rng import Rng
from turnout.core.retry_budget import RetryBudget
from turnout.sim.world.clock import VirtualClock
from turnout.sim.world.engine import Engine

MODEL = "sim"
_VIOLATIONS_MAX = 20
_TICK_S = 0.1
_REVIEW_S = 1.0
_PROBE_S = 2.0
_PROBE_TIMEOUT_S = 1.0
_RETURN_S = (0.2, 1.0, 3.0)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The sections that the world reads."""

    retry: options.Retry = options.Retry()
    breaker: options.Breaker = options.Breaker()
    admission: options.Admission = options.Admission()
    ejection: options.Ejection = options.Ejection()
    timeout: options.Timeout = options.Timeout(total_s=120.0)
    scheduling: options.Scheduling = options.Scheduling()


class Router:
    """Fleet, admission and health over simulated engines; runs join and leave `runs`."""

    def __init__(self, settings: Settings, engines: list[Engine], clock: VirtualClock, rng: Rng) -> None:
        self.settings = settings
        self.clock = clock
        self.rng = rng
        self.engines = {engine.name: engine for engine in engines}
        self.fleet = Fleet(settings.scheduling, options.Prefix(max_blocks=3000), settings.breaker)
        for engine in engines:
            self.join(engine)
        self.gate = Gate(settings.admission)
        self.budget = RetryBudget(settings.retry)
        self.runs: set[object] = set()
        self.violations: list[str] = []
        self.stale: set[str] = set()
        """Engines whose reports do not come any more."""
        self.queue_peak = 0
        self._ejections = Ejections(settings.ejection)
        self._ended_before = 0
        self._stopped = False
        self._misses: dict[str, int] = {}

    @property
    def pool(self) -> Pool:
        """The one pool of the world."""
        pool = self.fleet.pool(MODEL)
        assert pool is not None
        return pool

    def join(self, engine: Engine) -> EndpointState:
        """Register an engine, or its next incarnation."""
        described = options.Endpoint(
            name=engine.name, url="http://127.0.0.1:1", models=[MODEL], max_in_flight=engine.slots
        )
        return self.fleet.add(described, self.clock.now)

    def start(self) -> None:
        """Begin to probe, to review and to look at the queue."""
        self.clock.after(_REVIEW_S, self._review)
        self.clock.after(_TICK_S, self._tick)
        for name in self.engines:
            self.clock.after(_PROBE_S * self.rng.random(), lambda n=name: self._probe(n))  # type: ignore[misc]

    def stop(self) -> None:
        """No further timers of the router's own."""
        self._stopped = True

    def violation(self, text: str) -> None:
        """Note a broken promise."""
        if len(self.violations) < _VIOLATIONS_MAX:
            self.violations.append(f"t={self.clock.now:.3f}: {text}")

    def place_freed(self) -> None:
        """Let those at the head of the queue try, until one finds no place (Q6)."""
        queue = self.gate.queue
        self.queue_peak = max(self.queue_peak, queue.size)
        while queue.size:
            head = queue.head(self.clock.now)
            if head is None or not (head.owner.turn() or head.aside):
                return

    def engine_died(self, name: str) -> None:
        """A connection to it was refused: ask soon whether it is back (O1)."""
        self._misses[name] = 0
        self.clock.after(_RETURN_S[0], lambda: self._probe(name, again=False))

    def _tick(self) -> None:
        if self._stopped:
            return
        now = self.clock.now
        for ticket in self.gate.queue.expired(now):
            if not (ticket.held and ticket.owner.turn()):
                ticket.owner.expire()
        self.gate.resize(sum(member.max_in_flight for member in self.pool.members if not member.unreachable))
        self.place_freed()
        self.clock.after(_TICK_S, self._tick)

    def _review(self) -> None:
        if self._stopped:
            return
        now = self.clock.now
        members = self.pool.members
        self._ejections.review(members, now)
        ended = sum(member.attempts_total - member.in_flight for member in members)
        self.gate.drained.gave_back(ended - self._ended_before, now)
        self._ended_before = ended
        for member in members:
            engine = self.engines[member.name]
            if member.name not in self.stale and engine.probe():
                member.reported(now, member.in_flight, engine.running, engine.load - engine.running)
        self.clock.after(_REVIEW_S, self._review)

    def _probe(self, name: str, *, again: bool = True) -> None:
        if self._stopped:
            return
        if again:
            self.clock.after(_PROBE_S * (0.8 + 0.4 * self.rng.random()), lambda: self._probe(name))
        endpoint, engine = self.fleet.endpoints.get(name), self.engines[name]
        if endpoint is None:
            return
        away = endpoint.unreachable or endpoint.probe_failing
        answer = engine.probe()
        if answer is None:
            self.clock.after(_PROBE_TIMEOUT_S, lambda: self._probed(name, ok=False, timed_out=True))
        elif away or not makes_progress(endpoint, engine.last_byte_at, self.clock.now):
            self._probed(name, ok=answer, timed_out=False)

    def _probed(self, name: str, *, ok: bool, timed_out: bool) -> None:
        endpoint, now = self.fleet.endpoints.get(name), self.clock.now
        if endpoint is None:
            return
        progress = makes_progress(endpoint, self.engines[name].last_byte_at, now)
        if ok or counts_as_failure(ok=ok, timed_out=timed_out, progress=progress):
            self.fleet.on_probe(endpoint, now, ok=ok)
        misses = self._misses.get(name, 0)
        if not ok and endpoint.unreachable and misses + 1 < len(_RETURN_S):
            self._misses[name] = misses + 1
            self.clock.after(_RETURN_S[misses + 1], lambda: self._probe(name, again=False))
        if ok:
            self.place_freed()
