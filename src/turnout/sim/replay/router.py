"""One router of a replay: the live core (fleet, index, policies, seats, held requests), told what a gateway tells it.

It takes the gateway's part only: it asks `schedule`, binds with `take_seat`, reports first bytes, ends, failures,
scrapes and KV events. No rule of scheduling stands here.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from turnout.core import options as core_options
from turnout.core.errors import ErrorKind
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.precision import Mode
from turnout.core.fleet.registry import Fleet
from turnout.core.fleet.report import Report
from turnout.core.fleet.seat import Seat
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision
from turnout.core.scheduling.disagg import pairing
from turnout.core.scheduling.holding import HeldQueue
from turnout.core.scheduling.pipeline import schedule
from turnout.core.scheduling.seats import take_seat
from turnout.core.scheduling.types import Verdict
from turnout.sim.replay.options import ReplayOptions
from turnout.sim.replay.record import Job, Record
from turnout.sim.replay.sequence import Shape

if TYPE_CHECKING:
    from turnout.sim.replay.world import World

MODEL = "replayed"
_ATTEMPTS_MAX = 6
_RETRY_S = 0.5  # a request without any candidate asks again after this time


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a router is configured with, or finds out, about each engine."""

    shape: Shape
    block_tokens: int

    @property
    def kv_tokens(self) -> int:
        """KV memory, as engines report it."""
        return self.shape.hold_blocks * self.block_tokens

    @property
    def cache_tokens(self) -> int:
        """Prefix cache, host tier included: no engine reports it, so it is configured."""
        return self.shape.cache_blocks * self.block_tokens


class Router:
    """One router with a fleet of its own."""

    def __init__(
        self, number: int, world: World, options: ReplayOptions, policy: str, seed: int, facts: EngineFacts
    ) -> None:
        self.number = number
        self._world = world
        self._options = options
        self._facts = facts
        self._rng = random.Random(seed)
        self._noise = random.Random(seed ^ 0xE57)
        self.fleet = Fleet(
            _scheduling(options, policy, seed),
            core_options.Prefix(max_blocks=None),
            core_options.Breaker(),
        )
        if options.prefill_endpoints:
            self.fleet.pairing = pairing(options.pairs)
        self._exact = options.knowledge == "exact"
        self._lives = [0] * options.endpoints
        self._heard = [-1] * options.endpoints
        self._names = [f"e{place:03d}" for place in range(options.endpoints)]
        self._endpoints = [self._register(place, 0.0) for place in range(options.endpoints)]
        pool = self.fleet.pool(MODEL)
        assert pool is not None
        self._pool = pool
        self._may_hold = policy == "turnout"
        self._held: HeldQueue[Job] = HeldQueue()
        self._stranded: list[Job] = []
        self._timer_at = float("inf")
        self.fallbacks: dict[str, int] = {}
        self.drops: dict[str, int] = {}
        self.holds: dict[str, int] = {}

    # -- requests -----------------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """A request arrives here."""
        request = job.request
        now = self._world.now
        tokens = request.prompt_tokens
        sigma = self._options.estimate_sigma
        if sigma:
            tokens = max(1, int(tokens * self._noise.lognormvariate(0.0, sigma)))
        job.router = self
        job.ask = Ask(
            MODEL,
            request.keys,
            tokens,
            0,
            session=request.session,
            block_tokens=self._facts.block_tokens * tokens / request.prompt_tokens,
            may_hold=self._may_hold,
            arrived_s=now,
            chains={self._facts.block_tokens: request.keys} if self._exact and request.keys else {},
        )
        self._decide(job, now)

    def first_byte(self, job: Job, now: float) -> None:
        """The engine emitted the first token."""
        job.seat.first_byte(now)
        for seat in job.shadows:
            seat.first_byte(now)

    def prefilled(self, job: Job, now: float) -> tuple[int, float]:
        """The prefill leg has ended: where to decode, and how long after."""
        legs = job.legs
        legs.prefilled(now, job.realised or None)
        lacks = self._world.lacks(job, job.engine)
        setting = legs.pairing.options
        seconds = setting.transfer_setup_s + lacks * setting.kv_bytes_per_token / setting.transfer_bytes_per_s
        return job.engine, now + seconds

    def ended(self, job: Job, now: float) -> None:
        """The engine ended the answer."""
        request = job.request
        job.seat.ended(
            now,
            failed=False,
            tokens_out=request.output_tokens,
            cached=job.realised or None,
            prompt=request.prompt_tokens,
        )
        job.seat.endpoint.breaker.success(job.epoch, now)
        for seat in job.shadows:
            seat.ended(now, failed=False, tokens_out=job.request.output_tokens)

    def broken(self, job: Job, now: float) -> None:
        """The connection to the engine broke: before the first token the request goes elsewhere, later it is lost."""
        started = job.seat.first_byte_s is not None
        self._give_up_seat(job, now)
        job.seat.endpoint.breaker.fault(job.epoch, now)
        if started:
            self._world.lost(job)
        else:
            self._decide_again(job, now)

    def poll(self, now: float) -> None:
        """Something ended, began or was reported: ask for those who wait."""
        held = self._held
        while len(held):
            job = held.head(now)
            if job is None:
                break
            decision = self._schedule(job, now)
            if decision.verdict is Verdict.HELD:
                if not held.again(job, decision, now):
                    break
                continue
            held.leave(job)
            self._bind(job, decision, now)
        self._set_timer()

    def heard(self, argument: tuple[Job, Decision, int]) -> None:
        """Another router dispatched a request: its seat is taken here, too, and given back with it."""
        job, decision, attempt = argument
        endpoint = self._endpoints[job.engine]
        if job.attempts != attempt or job.ended_at >= 0 or not job.seat.is_open or endpoint.gone:
            return
        now = self._world.now
        seat = Seat(
            self.fleet,
            self._pool,
            endpoint,
            keys=job.ask.keys,
            depth=decision.matched_blocks,
            tokens=job.ask.tokens,
            uncached=decision.uncached,
            predicted=0,
            block_tokens=job.ask.block_tokens,
            now=now,
            chain=job.ask.keys if endpoint.streams else None,
            mode=decision.mode,
        )
        if job.first_at >= 0:
            seat.first_byte(now)
        job.shadows.append(seat)

    # -- facts --------------------------------------------------------------------------------------------------------

    def scrape(self, now: float) -> None:
        """Read the metrics of all engines that live."""
        engines, alive = self._world.engines, self._world.alive
        delay = self._options.report_delay_s
        for place, endpoint in enumerate(self._endpoints):
            if not alive[place]:
                continue
            engine = engines[place]
            kind = self._options.reports
            tokens = None
            if kind == "tokens":
                tokens = engine.uncomputed_tokens()
            elif kind == "waiting":
                tokens = engine.waiting_uncached_tokens()
            running, waiting, used = engine.counts(now)
            report = Report(
                running=running,
                waiting=waiting,
                waiting_uncached_tokens=tokens,
                kv_usage_ratio=used / engine.store.hold_max,
                kv_capacity_tokens=self._facts.kv_tokens,
            )
            sent = endpoint.sent(now)
            if delay:
                self._world.call_at(now + delay, self._observe, (endpoint, sent, report))
            else:
                self.fleet.observed(endpoint, sent, report)
        if self._may_hold and not delay:
            self.poll(now)

    def kv_events(
        self, place: int, life: int, sequence: int, removed: list[int], stored: list[int], now: float
    ) -> None:
        """A batch of an engine's KV events arrives; a gap in the numbers leaves what is known in doubt."""
        endpoint = self._endpoints[place]
        if life != self._lives[place] or endpoint.gone:
            return  # of a life that this router does not know (yet): its next probe opens a new stream
        stream = endpoint.streams[0]
        if sequence != self._heard[place] + 1:
            self.fleet.exact.gap(stream)
            endpoint.mode = Mode.DEGRADED
        self._heard[place] = max(sequence, self._heard[place])
        if removed:
            self.fleet.blocks_removed(endpoint, stream, removed, now)
        if stored:
            # The trace's keys are hash and key at once: equal keys are equal prefixes.
            self.fleet.blocks_stored(endpoint, stream, [(key, key) for key in stored], now)

    def probe(self, now: float) -> None:
        """Ask every engine whether it is there; one that came back is a new incarnation."""
        world = self._world
        for place in range(len(self._endpoints)):
            endpoint = self._endpoints[place]
            if not world.alive[place]:
                self.fleet.on_probe(endpoint, now, ok=False)
            elif world.lives[place] != self._lives[place]:
                self._endpoints[place] = self._register(place, now)
            elif endpoint.unreachable or endpoint.probe_failing:
                self.fleet.on_probe(endpoint, now, ok=True)
        if self._stranded:
            stranded, self._stranded = self._stranded, []
            for job in stranded:
                self._decide(job, now)

    def counted(self, record: Record) -> None:
        """Add this router's counts to the record."""
        for mine, its in ((self.fallbacks, record.fallbacks), (self.drops, record.drops), (self.holds, record.held)):
            for name, count in mine.items():
                its[name] = its.get(name, 0) + count

    # -- inside -------------------------------------------------------------------------------------------------------

    def _register(self, place: int, now: float) -> EndpointState:
        endpoint = self.fleet.add(
            core_options.Endpoint(
                name=self._names[place],
                url=f"http://{self._names[place]}:8000",
                models=[MODEL],
                max_in_flight=2**31 - 1,
                role=self._role(place),
                cache_tokens=self._facts.cache_tokens,
            ),
            now,
        )
        self._lives[place] = self._world.lives[place]
        self._heard[place] = -1
        if self._exact:
            self.fleet.open_stream(endpoint, self._facts.block_tokens)
            endpoint.mode = Mode.EXACT
        return endpoint

    def _role(self, place: int) -> Literal["prefill", "decode", "both"]:
        prefills = self._options.prefill_endpoints
        if not prefills:
            return "both"
        return "prefill" if place < prefills else "decode"

    def _schedule(self, job: Job, now: float) -> Decision:
        return schedule(job.ask, self._pool, self.fleet, now, self._rng)

    def _decide(self, job: Job, now: float) -> None:
        decision = self._schedule(job, now)
        if decision.verdict is Verdict.HELD:
            self.holds[decision.held] = self.holds.get(decision.held, 0) + 1
            self._held.enter(job, decision, now)
            self._set_timer(decision.retry_at)
            return
        self._bind(job, decision, now)

    def _decide_again(self, job: Job, now: float) -> None:
        job.ask.tried = (*job.ask.tried, self._names[job.engine])
        job.ask.relax = True
        if job.attempts >= _ATTEMPTS_MAX:
            self._world.lost(job)
            return
        self._decide(job, now)

    def _bind(self, job: Job, decision: Decision, now: float) -> None:
        if decision.fallback:
            self.fallbacks[decision.fallback] = self.fallbacks.get(decision.fallback, 0) + 1
        for _, reason in decision.dropped:
            self.drops[str(reason)] = self.drops.get(str(reason), 0) + 1
        picked = decision.picked
        if picked is None:
            # Nobody is there: the gateway queues until somebody may be.
            job.ask.tried = ()
            self._world.call_at(now + _RETRY_S, self._retry, job)
            return
        job.held_s = now - job.arrived_at
        job.attempts += 1
        job.predicted = decision.predicted
        place = self._names.index(picked.name)
        job.engine = place
        job.epoch = picked.breaker.opened(now)
        job.seat = take_seat(decision, job.ask, self._pool, self.fleet, now)
        if self._pool.pairs is not None:
            job.legs = self._pool.pairs.legs(decision, job.ask, self._pool, self.fleet, now)
            job.stage = 0 if job.legs is None else 1
        if job.ask.session:
            self.fleet.pin(job.ask.session, picked, now)
        first = place if job.legs is None else self._names.index(job.legs.prefill.name)
        if self._world.open(job, first):
            job.engine = place
            if self._options.bus:
                self._world.share(self, job, decision)
            return
        self._give_up_seat(job, now)
        picked.breaker.fault(job.epoch, now)
        self.fleet.on_connect_failure(picked, now)
        self._decide_again(job, now)

    def _give_up_seat(self, job: Job, now: float) -> None:
        if job.legs is not None:
            job.legs.ended(now, ErrorKind.CANCELLED)
        job.seat.ended(now, failed=True)
        for seat in job.shadows:
            seat.ended(now, failed=True)
        job.shadows.clear()

    def _retry(self, job: Job) -> None:
        self._decide(job, self._world.now)

    def _observe(self, argument: tuple[EndpointState, Any, Report]) -> None:
        endpoint, sent, report = argument
        if not endpoint.gone:
            self.fleet.observed(endpoint, sent, report)
            self.poll(self._world.now)

    def _set_timer(self, at: float | None = None) -> None:
        """Have `poll` called when a gated request wants to be asked again, or the queue should have drained."""
        if not len(self._held):
            return
        wanted = self._held.next_look()
        if at is not None:
            wanted = at if wanted is None else min(at, wanted)
        now = self._world.now
        if wanted is None:
            return
        wanted = max(wanted, now)
        if self._timer_at <= now or wanted < self._timer_at:
            self._timer_at = wanted
            self._world.call_at(wanted, self._timed, wanted)

    def _timed(self, at: float) -> None:
        if at == self._timer_at:
            self._timer_at = float("inf")
            self.poll(self._world.now)


def _scheduling(options: ReplayOptions, policy: str, seed: int) -> core_options.Scheduling:
    changes: dict[str, Any] = {"policy": policy, "seed": seed % 2**31}
    if options.hold_prefill_s is not None:
        changes["hold_prefill_s"] = options.hold_prefill_s
    if options.gate_regret is not None:
        changes["gate_regret"] = options.gate_regret
    return core_options.Scheduling(**changes)
