"""Transcripts of an exchange: rows of (instant, what happens, what must follow), all three in plain words."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from turnout.core import options
from turnout.core.admission.gate import Applicant, Gate
from turnout.core.errors import ErrorKind, Outcome
from turnout.core.exchange import Exchange
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet
from turnout.core.lifecycle import GiveUp, Next, Open, Queued, Wait
from turnout.core.retry_budget import RetryBudget
from turnout.core.retry_loop import Route
from turnout.core.scheduling.ask import Ask
from turnout.core.usage import Usage

START = 100.0
KEYS = [11, 12, 13]


class Even:
    """Chance that is always in the middle."""

    def random(self) -> float:
        return 0.5

    def randrange(self, stop: int, /) -> int:
        return stop // 2


class Scene:
    """One exchange over a small fleet that serves `m`; ties go to the first name.

    An endpoint is given by its name, followed by what it is: `b standby`, `c context=1000`, `d full=1`, `e model=n`.
    With `admission` there is a gate; `fallback` names the models that may be asked instead.
    """

    def __init__(
        self,
        *endpoints: str,
        total_s: float = 600.0,
        admission: options.Admission | None = None,
        fallback: tuple[str, ...] = (),
        anonymous: bool = False,
        **retry: float,
    ) -> None:
        self.gate = Gate(admission) if admission is not None else None
        self.other_gate = Gate(admission or options.Admission())
        """That of the fallback models."""
        self.anonymous = anonymous
        self.fallback = list(fallback)
        self.fleet = Fleet(options.Scheduling(policy="least_busy"), options.Prefix(), options.Breaker())
        for endpoint in endpoints:
            self.join(endpoint, 0.0)
        self.retry = options.Retry(**retry)  # type: ignore[arg-type]
        self.budget = RetryBudget(self.retry)
        self.exchange = self.another(total_s)

    def join(self, endpoint: str, now: float) -> None:
        name, *facts = endpoint.split()
        given: dict[str, object] = {"name": name, "url": "http://127.0.0.1:1", "models": ["m"]}
        for fact in facts:
            word, _, number = fact.partition("=")
            if word == "model":
                given["models"] = [number]
                continue
            field = {"context": "context_max", "full": "max_in_flight"}.get(word, word)
            given[field] = int(number) if number else True
        self.fleet.add(options.Endpoint(**given), now)  # type: ignore[arg-type]

    def another(self, total_s: float = 600.0) -> Exchange:
        """A further exchange over the same fleet and budget."""
        pool = self.fleet.pool("m")
        assert pool is not None
        ask = Ask(model="m", keys=KEYS, tokens=300, estimate_floor=200, relax=True)
        if self.gate is not None:
            self.gate.resize(sum(member.places for member in pool.members))
        return Exchange(ask, pool, self.fleet, self.retry, self.budget, Even(), START, total_s, self.gate, self)

    def applicant(self) -> Applicant:
        """Who asks: the owner's part."""
        return Applicant(tenant="t", cost=300.0, deadline_s=START + 600, anonymous=self.anonymous)

    def has_next_model(self) -> bool:
        return bool(self.fallback)

    def next_model(self) -> Route | None:
        """The next fallback model, as its owner would set it out."""
        if not self.fallback:
            return None
        model = self.fallback.pop(0)
        pool = self.fleet.pool(model)
        assert pool is not None
        ask = Ask(model=model, keys=[], tokens=300, estimate_floor=200, relax=True)
        return Route(ask, pool, RetryBudget(self.retry), self.other_gate)

    def endpoint(self, name: str) -> EndpointState:
        return self.fleet.endpoints[name]

    def next_picks(self, now: float) -> str:
        """Where a further exchange would begin."""
        return shown(self.another().begin(now))

    def happens(self, event: str, now: float) -> str:
        """One event in words; returns what must follow in words, `-` for nothing."""
        verb, *words = event.split()
        if verb in self.fleet.endpoints:
            setattr(self.endpoint(verb), words[-1], True)
            return "-"
        step: Callable[[list[str], float], Next | None] = getattr(self, "_" + verb)
        return shown(step(words, now))

    def play(self, *rows: tuple[float, str, str]) -> None:
        for number, (now, event, expected) in enumerate(rows, 1):
            assert self.happens(event, now) == expected, f"row {number}, {event!r} at {now}"

    def _begin(self, _: list[str], now: float) -> Next:
        return self.exchange.begin(now)

    def _wait_over(self, _: list[str], now: float) -> Next:
        return self.exchange.wait_over(now)

    def _first_byte(self, _: list[str], now: float) -> None:
        self.exchange.first_byte(now)

    def _committed(self, _: list[str], now: float) -> None:  # noqa: ARG002 - every event has its instant
        self.exchange.committed()

    def _completed(self, _: list[str], now: float) -> None:
        self.exchange.completed(Usage(10, 5), now, 200)

    def _closes(self, words: list[str], now: float) -> None:
        """`closes OUTCOME [KIND]`."""
        self.exchange.close(Outcome(words[0]), now, ErrorKind(words[1] if words[1:] else "cancelled"))

    def _fails(self, words: list[str], now: float) -> Next:
        """`fails KIND [STATUS [RETRY_AFTER]]`, of the attempt on an endpoint `fails at NAME …`."""
        attempt = None
        if words[0] == "at":
            attempt = next(a for a in self.exchange.attempts if a.endpoint.name == words[1] and a.is_open)
            words = words[2:]
        kind, status, after = [*words, "", ""][:3]
        return self.exchange.attempt_failed(
            ErrorKind(kind),
            now,
            status=int(status) if status else None,
            retry_after_s=float(after) if after else None,
            attempt=attempt,
        )

    def _turn(self, _: list[str], now: float) -> Next | None:
        return self.exchange.turn(now)

    def _expires(self, _: list[str], now: float) -> Next:
        return self.exchange.queue_expired(now)

    def _rescue(self, words: list[str], now: float) -> Next | None:
        """`rescue [models] [NAME …]`: with other models or not, without the named endpoints."""
        other_models = words[:1] == ["models"]
        return self.exchange.rescue(now, unable=tuple(words[other_models:]), other_models=other_models)

    def _rejoin(self, _: list[str], now: float) -> Next | None:
        return self.exchange.rejoin(now)

    def _hedge(self, _: list[str], now: float) -> Next | None:
        attempt = self.exchange.hedge(now)
        return None if attempt is None else Open(attempt)

    def _others(self, words: list[str], now: float) -> None:
        """`others N`: that many other exchanges begin and stay open."""
        self.open_others = [self.another() for _ in range(int(words[0]))]
        for other in self.open_others:
            other.begin(now)

    def _another_ends(self, _: list[str], now: float) -> None:
        self.open_others.pop().completed(None, now, 200)

    def _answers(self, words: list[str], now: float) -> None:
        """A readiness probe of the named endpoint succeeds."""
        self.fleet.on_probe(self.endpoint(words[0]), now, ok=True)

    def _refuses(self, words: list[str], now: float) -> None:
        """The named endpoint refuses somebody's connection."""
        self.fleet.on_connect_failure(self.endpoint(words[0]), now)

    def _opens(self, words: list[str], now: float) -> None:
        """The breaker of the named endpoint opens, through attempts of other exchanges."""
        breaker = self.endpoint(words[0]).breaker
        for _ in range(3):
            breaker.fault(breaker.opened(now), now)

    def _leaves(self, words: list[str], now: float) -> None:  # noqa: ARG002
        self.fleet.remove(words[0])

    def _spend(self, words: list[str], now: float) -> None:
        """Other exchanges take that many extra attempts."""
        assert all(self.budget.take(now) for _ in range(int(words[0])))

    def _earn(self, words: list[str], now: float) -> None:
        """That many other exchanges begin."""
        for _ in range(int(words[0])):
            self.budget.exchange_started(now)


def shown(following: Next | None) -> str:
    if following is None:
        return "-"
    if isinstance(following, Open):
        return f"open {following.attempt.endpoint.name} {following.attempt.kind}"
    if isinstance(following, GiveUp):
        return f"give up {following.outcome}"
    if isinstance(following, Wait):
        return f"wait until {following.until_s:g}"
    return "queue" if isinstance(following, Queued) else "go on"


@pytest.fixture(scope="session")
def scene() -> type[Scene]:
    return Scene
