"""A scenario with a seed, played: clients on one side, engines on the other, the live core in between.

`play` returns what happened and every promise that was broken; the same seed gives the same history, bit for bit.
"""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import xxhash

from turnout.core.errors import ENDINGS, Outcome
from turnout.sim.world.clock import VirtualClock
from turnout.sim.world.engine import Engine
from turnout.sim.world.router import Router
from turnout.sim.world.run import Asked, Run
from turnout.sim.world.scenarios import SCENARIOS, Scenario

_EVENTS_MAX = 5_000_000
_SETTLE_S = 150.0
_TOKENS_MIN, _TOKENS_MAX = 5, 60
_FAIR_SHARE = 0.95


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What happened. `digest` is the same for the same history."""

    scenario: str
    seed: int
    digest: str
    requests: int
    outcomes: dict[str, int]
    attempts: int
    resumed: int
    rerouted: int
    queue_peak: int
    wait_max_s: float
    ttft_p99_s: float
    completed_by_tenant: dict[str, int]
    violations: list[str]


class World:
    """One play of one scenario."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.clock = VirtualClock()
        self._rng = random.Random(seed)
        names = [f"e{number}" for number in range(1, scenario.engines + 1)]
        self.engines = [
            Engine(name, self.clock, random.Random(f"{seed}:{name}"), slots=scenario.slots) for name in names
        ]
        self.router = Router(scenario.settings, self.engines, self.clock, random.Random(f"{seed}:router"))
        self.ended: list[Run] = []
        self._asked = 0
        self._history = xxhash.xxh3_64()
        self._arrived: Counter[str] = Counter()

    def engine(self, name: str) -> Engine:
        """The engine of this name."""
        return self.router.engines[name]

    def leave(self, name: str) -> None:
        """An endpoint deregisters."""
        self.router.fleet.remove(name)

    def join_again(self, name: str) -> None:
        """An endpoint registers as a new incarnation."""
        self.router.join(self.engine(name))

    def play(self) -> None:
        """Let the scenario happen, then let everything end."""
        scenario, clock = self.scenario, self.clock
        for at, action in scenario.events(self):
            clock.at(at, lambda act=action: act(self))  # type: ignore[misc]
        self.router.start()
        clock.at(0.0, self._arrive)
        if not clock.run(scenario.duration_s + _SETTLE_S, _EVENTS_MAX):
            self.router.violation(f"more than {_EVENTS_MAX} events")
        self.router.stop()
        self._check()

    def _arrive(self) -> None:
        now, scenario, rng = self.clock.now, self.scenario, self._rng
        if now >= scenario.duration_s:
            return
        tenant = rng.choices(list(scenario.tenants), list(scenario.tenants.values()))[0]
        prefix = rng.randrange(40)
        asked = Asked(
            self._asked,
            tenant,
            rng.randint(_TOKENS_MIN, _TOKENS_MAX),
            tuple(xxhash.xxh3_64_intdigest(b"%d:%d" % (prefix, block)) for block in range(4)),
            priority=rng.choice((0, 1, 1, 1, 2)) if tenant else 1,
            patience_s=rng.uniform(0.01, 1.0) if rng.random() < scenario.patience_share else None,
        )
        self._asked += 1
        self._arrived[tenant] += 1
        Run(self.router, asked, self._ended).begin()
        self.clock.after(rng.expovariate(scenario.load(now) * self._capacity_per_s()), self._arrive)

    def _capacity_per_s(self) -> float:
        engine = self.engines[0]
        tokens = (_TOKENS_MIN + _TOKENS_MAX) / 2
        return len(self.engines) * self.scenario.slots / (engine.ttft_s + tokens * engine.itl_s)

    def _ended(self, run: Run) -> None:
        self.ended.append(run)
        names = ",".join(f"{a.endpoint.name}:{a.kind}:{a.error_kind}" for a in run.exchange.attempts)
        self._history.update(f"{self.clock.now:.6f} {run.asked.number} {run.outcome} {run.sent} {names}\n".encode())

    # -- what must be true at the end ---------------------------------------------------------------------------------

    def _check(self) -> None:
        router, say = self.router, self.router.violation
        if len(self.ended) != self._asked or router.runs:
            say(f"{self._asked} requests, {len(self.ended)} outcomes, {len(router.runs)} still open")
        for name, endpoint in router.fleet.endpoints.items():
            counts = (endpoint.in_flight, endpoint.pending_prefill_tokens, endpoint.active_tokens)
            if any(counts):
                say(f"{name} is left with in flight, pending and active tokens of {counts}")
        gate = router.gate
        left = (gate.queue.size, gate.queued(), gate.queued_bytes, len(gate.held), gate.anonymous)
        if any(left):
            say(f"the gate is left with {left}")
        if router.fleet.index.entries > router.fleet.prefix.max_blocks:  # type: ignore[operator]
            say(f"the prefix index holds {router.fleet.index.entries}")
        wait_max_s = self.scenario.settings.admission.queue_wait_s + 0.2
        starved = [run for run in self.ended if not run.exchange.attempts and self._waited_s(run) > wait_max_s]
        if starved:
            say(f"{len(starved)} requests waited longer than {wait_max_s} s, the first is {starved[0].asked.number}")
        self._check_budget()
        self._check_shares()

    def _check_budget(self) -> None:
        """N5 over every window of ten seconds."""
        retry = self.scenario.settings.retry
        extra = sorted(a.started_s for run in self.ended for a in run.exchange.attempts[1:])
        spans = [(run.started_s, run.exchange.attempts[-1].ended_s) for run in self.ended if run.exchange.attempts]
        for first in range(0, len(extra), 10):
            start = extra[first]
            count = sum(1 for at in extra[first:] if at < start + 10.0)
            active = sum(1 for begun, ended in spans if begun < start + 10.0 and ended >= start - 1.0)
            allowed = retry.budget_ratio * active + retry.budget_floor_per_s * 10.0 + 1
            if count > allowed:
                self.router.violation(f"{count} extra attempts from t={start:.1f} on, {allowed:.0f} allowed")

    def _check_shares(self) -> None:
        scenario, outcomes = self.scenario, Counter(run.outcome for run in self.ended)
        bad = {
            cls: sum(count for outcome, count in outcomes.items() if outcome and ENDINGS[outcome].cls == cls)
            for cls in ("upstream", "capacity", "internal", "client")
        }
        for cls, allowed in (
            ("upstream", scenario.errors_max_share),
            ("capacity", scenario.refusals_max_share),
            ("internal", 0.0),
            ("client", scenario.errors_max_share + scenario.refusals_max_share),
        ):
            if bad[cls] > allowed * len(self.ended):
                self.router.violation(f"{bad[cls]} of {len(self.ended)} requests ended as {cls}: {dict(outcomes)}")
        if scenario.fair:
            self._check_fairness()

    def _check_fairness(self) -> None:
        """Work done per named tenant, against the max-min fair share of what was done in all (P7)."""
        work: Counter[str] = Counter()
        wanted: Counter[str] = Counter()
        for run in self.ended:
            if run.asked.tenant:
                cost = run.applicant().cost
                wanted[run.asked.tenant] += int(cost)
                work[run.asked.tenant] += int(cost) if run.outcome is Outcome.COMPLETED else 0
        left, open_tenants = sum(work.values()), sorted(wanted, key=lambda tenant: wanted[tenant])
        for position, tenant in enumerate(open_tenants):
            share = min(wanted[tenant] * (1 - self.scenario.patience_share * 2), left / (len(open_tenants) - position))
            left -= int(share)
            if work[tenant] < _FAIR_SHARE * share:
                self.router.violation(f"tenant {tenant} got {work[tenant]} of its fair {share:.0f}: {dict(work)}")

    def _waited_s(self, run: Run) -> float:
        return 0.0 if run.queued_s is None else self._ended_s(run) - run.queued_s

    @staticmethod
    def _ended_s(run: Run) -> float:
        attempts = run.exchange.attempts
        return attempts[0].started_s if attempts else run.ended_s

    def report(self, name: str, seed: int) -> Report:
        """Sum up what happened."""
        ttfts = sorted(run.ttft_s for run in self.ended if run.ttft_s is not None)
        attempts = [attempt for run in self.ended for attempt in run.exchange.attempts]
        return Report(
            scenario=name,
            seed=seed,
            digest=self._history.hexdigest(),
            requests=self._asked,
            outcomes={str(outcome): count for outcome, count in sorted(Counter(r.outcome for r in self.ended).items())},
            attempts=len(attempts),
            resumed=sum(1 for attempt in attempts if attempt.kind == "resume"),
            rerouted=sum(1 for attempt in attempts if attempt.kind in ("other", "standby", "relaxed")),
            queue_peak=self.router.queue_peak,
            wait_max_s=round(max((self._waited_s(run) for run in self.ended), default=0.0), 3),
            ttft_p99_s=round(ttfts[int(len(ttfts) * 0.99)], 3) if ttfts else 0.0,
            completed_by_tenant=dict(Counter(r.asked.tenant for r in self.ended if r.outcome is Outcome.COMPLETED)),
            violations=self.router.violations,
        )


def play(name: str, seed: int) -> Report:
    """Play one scenario. Raises KeyError for a name that does not exist."""
    world = World(SCENARIOS[name], seed)
    world.play()
    return world.report(name, seed)
