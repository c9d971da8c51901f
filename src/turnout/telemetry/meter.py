"""Counting on the request path: plain integers in plain dictionaries, no metrics library, no clock, no I/O.

The renderer (`telemetry.prometheus`) reads these numbers at scrape time, from another thread if it likes: every read
copies one container in one step. Label values are bounded: an unknown model or endpoint beyond the cap counts
as `_other`, and a name that only a client chose is never a label.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import msgspec

from turnout.core.errors import Outcome
from turnout.core.facts import CallFact, RouteKey
from turnout.core.scheduling.decision import Decision

LABEL_MAX: Final = 1000
"""Distinct models, and distinct endpoints, that get series of their own (F79)."""
CODE_MAX: Final = 128
"""Distinct refusal codes, fallback reasons and drop reasons; they are closed sets far below this."""
OTHER: Final = "_other"
NONE: Final = "_none"

TTFT_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 60.0, 120.0,
)  # fmt: skip
ITL_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
E2E_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0,
    40.0, 60.0, 120.0, 240.0, 600.0,
)  # fmt: skip
CANDIDATES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
SCHEDULE_S = (
    0.000005, 0.00001, 0.00002, 0.00003, 0.00005, 0.000075, 0.0001, 0.00015, 0.0002, 0.00025, 0.0005,
    0.001, 0.0025, 0.005, 0.01,
)  # fmt: skip
OVERHEAD_S = (
    0.00002, 0.00005, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5,
)  # fmt: skip

# Outcomes reached after model resolution (request-path §1, steps 10 to 13): there the requested name is a catalogue
# id or an alias. Before it, the name is whatever a client typed and must not become a label.
_RESOLVED: Final = frozenset(
    {
        Outcome.MODEL_FORBIDDEN,
        Outcome.CONTEXT_EXCEEDED,
        Outcome.UNSERVABLE,
        Outcome.QUEUE_FULL,
        Outcome.QUEUE_EXPIRED,
        Outcome.NO_ENDPOINT,
        Outcome.MODEL_LOADING,
    }
)


class EndpointRow(msgspec.Struct, frozen=True, gc=False):
    """One endpoint as the metrics show it at scrape time; None is unknown and gives no sample."""

    endpoint: str
    in_flight: int
    queue_depth: int | None = None
    kv_usage_ratio: float | None = None
    unreachable: bool = False
    probe_failing: bool = False
    breaker: str = "closed"


class Histogram:
    """A cumulative-bucket histogram in the making: one count per bound (value ≤ bound) and one above all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        if not bounds or any(b <= a for a, b in pairwise(bounds)):
            raise ValueError(f"bounds: {bounds!r} is empty or not strictly increasing")
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value. Negative values and NaN are no measurement and are ignored: a NaN would stay in the sum."""
        if value >= 0.0:
            # `bisect_left`, four times per request: compiled, the call costs more than the search.
            bounds = self.bounds
            low, high = 0, len(bounds)
            while low < high:
                middle = (low + high) >> 1
                if bounds[middle] < value:
                    low = middle + 1
                else:
                    high = middle
            self.counts[low] += 1
            self.sum += value

    @property
    def count(self) -> int:
        """Number of values counted."""
        return sum(self.counts)


class ModelCounts:
    """Everything counted per model, found with one dictionary look-up per call."""

    __slots__ = ("e2e", "overestimates", "requests", "tokens_cached", "tokens_in", "tokens_out", "ttft")

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str], int] = {}
        self.e2e = Histogram(E2E_S)
        self.ttft = Histogram(TTFT_S)
        self.tokens_in = 0
        self.tokens_out = 0
        self.tokens_cached = 0
        self.overestimates = 0


class Meter:
    """All counters of one process. The gateway increments the plain integers itself; the rest has one method each."""

    def __init__(self) -> None:
        self.models: dict[str, ModelCounts] = {}
        self.attempts: dict[tuple[str, str], int] = {}
        self.refusals: dict[str, int] = {}
        self.picks: dict[str, int] = {}
        self.prefix_lookups: dict[str, int] = {}
        self.fallbacks: dict[tuple[str, str], int] = {}
        self.drops: dict[str, int] = {}
        self.holds: dict[str, int] = {}
        self.itl = Histogram(ITL_S)
        self.schedule = Histogram(SCHEDULE_S)
        self.candidates = Histogram(CANDIDATES)
        self.overhead = Histogram(OVERHEAD_S)
        self.prefix_blocks_total = 0
        self.prefix_matched_blocks_total = 0
        self.connections_open = 0
        self.connections_total = 0
        self.exchanges_open = 0
        self.bodies_held_bytes = 0
        self.upstream_connects_total = 0
        self.upstream_connect_failures_total = 0
        self.upstream_reuses_total = 0
        self.relay_events_inspected_total = 0
        self.relay_events_oversized_total = 0
        self.relay_events_dropped_total = 0
        self.relay_keepalives_total = 0
        self.retry_budget_exhausted_total = 0
        self.rerouted_total = 0
        self.rescues_tried_total = 0
        self.rescues_completed_total = 0
        self.rescues_mismatched_total = 0
        self.hedges_sent_total = 0
        self.hedges_won_total = 0
        self.ejections_total = 0
        self.poison_fenced_total = 0
        self._endpoints: set[str] = set()

    def closed(self, fact: CallFact) -> None:
        """Count one closed exchange with all its attempts; rows counted equal rows written (ledger §10)."""
        route = fact.route
        model = fact.selected_model or (route.model if route is not None else _resolved_name(fact))
        counts = self.models.get(model)
        if counts is None:
            counts = self._new_model(model)
        requests = counts.requests
        ending = (fact.outcome, fact.cls)
        try:
            requests[ending] += 1
        except KeyError:
            requests[ending] = 1
        # Division, not multiplication by 0.001: only a correctly rounded quotient equals the bound it lies on.
        counts.e2e.observe(fact.e2e_ms / 1000)
        if fact.ttft_ms is not None:
            counts.ttft.observe(fact.ttft_ms / 1000)
        if fact.tokens_in is not None:
            counts.tokens_in += fact.tokens_in
            if fact.est_tokens is not None and fact.tokens_in < fact.est_tokens:
                counts.overestimates += 1
        if fact.tokens_out is not None:
            counts.tokens_out += fact.tokens_out
        if fact.tokens_cached is not None:
            counts.tokens_cached += fact.tokens_cached
        attempts = self.attempts
        for attempt in fact.attempts:
            where = attempt.route
            key = (where.replica if where is not None else NONE, attempt.error_kind or "ok")
            try:
                attempts[key] += 1
            except KeyError:
                key = (self._endpoint(where), key[1])
                attempts[key] = attempts.get(key, 0) + 1

    def refused(self, code: str) -> None:
        """Count one refusal before an exchange opened, by its error code (request-path §10)."""
        _bump(self.refusals, code)

    def decided(self, decision: Decision, seconds: float) -> None:
        """Count a first decision and what it took."""
        self.schedule.observe(seconds)
        self.candidates.observe(len(decision.members))
        if decision.picked is not None:
            self.picked(decision.picked.name)
        if decision.held:
            self.held(decision.held)
        else:
            self.prefix(decision.prefix_result, decision.blocks, decision.matched_blocks)
        for _, reason in decision.dropped:
            self.dropped(reason)
        if decision.fallback or decision.relaxed:
            self.fell_back(decision.policy, decision.fallback or "relaxed")

    def prefix(self, result: str, blocks: int, matched: int) -> None:
        """Count one decision's look-up: result (scheduling §6), blocks hashed, blocks found at the endpoint picked."""
        _bump(self.prefix_lookups, result)
        self.prefix_blocks_total += blocks
        self.prefix_matched_blocks_total += matched

    def held(self, reason: str) -> None:
        """Count one request that scheduling holds: `queue` or `cold_gate`."""
        _bump(self.holds, reason)

    def picked(self, endpoint: str) -> None:
        """Count one pick of an endpoint by the scheduler."""
        try:
            self.picks[endpoint] += 1
        except KeyError:
            name = endpoint if self._admits(endpoint) else OTHER
            self.picks[name] = self.picks.get(name, 0) + 1

    def fell_back(self, policy: str, reason: str) -> None:
        """Count one decision that its policy could not make on its own signal: no_match, no_signal, relaxed."""
        key = (policy, reason)
        if key not in self.fallbacks and len(self.fallbacks) >= CODE_MAX:
            key = (OTHER, OTHER)
        self.fallbacks[key] = self.fallbacks.get(key, 0) + 1

    def dropped(self, reason: str) -> None:
        """Count one candidate that a filter dropped."""
        _bump(self.drops, reason)

    def _new_model(self, model: str) -> ModelCounts:
        if len(self.models) >= LABEL_MAX:
            model = OTHER
        counts = self.models.get(model)
        if counts is None:
            counts = self.models[model] = ModelCounts()
        return counts

    def _endpoint(self, route: RouteKey | None) -> str:
        """The label of an attempt seen for the first time; a deployment without replica is named by its provider."""
        if route is None:
            return NONE
        name = route.replica or route.provider or NONE
        return name if self._admits(name) else OTHER

    def _admits(self, endpoint: str) -> bool:
        known = self._endpoints
        if endpoint not in known:
            if len(known) >= LABEL_MAX:
                return False
            known.add(endpoint)
        return True


def _resolved_name(fact: CallFact) -> str:
    return fact.requested_model if fact.outcome in _RESOLVED and fact.requested_model else NONE


def _bump(counts: dict[str, int], key: str) -> None:
    try:
        counts[key] += 1
    except KeyError:
        name = key if len(counts) < CODE_MAX else OTHER
        counts[name] = counts.get(name, 0) + 1
