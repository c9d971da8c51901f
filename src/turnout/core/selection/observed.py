"""What the ledger saw of the models lately, as selection reads it: with its age, and only while that is small (§7).

Derived once per snapshot, never per request. A snapshot that is too old is no observation: nothing here survives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from turnout.core.facts import RouteKey, StatsSnapshot

SAMPLES_MIN = 20


class Observed(msgspec.Struct, frozen=True):
    """Figures by model. `at_ms` is when they were derived; 0: nothing is known."""

    at_ms: int = 0
    success_rate: Mapping[str, float] = {}
    ttft_s: Mapping[str, float] = {}
    tool_weak: frozenset[str] = frozenset()


NOTHING = Observed()


def observed(
    snapshot: StatsSnapshot, models: Iterable[str], routes_of: Callable[[str], Iterable[RouteKey]]
) -> Observed:
    """Derive the figures of these models from a snapshot; too few samples are no figure."""
    rates: dict[str, float] = {}
    times: dict[str, float] = {}
    weak: set[str] = set()
    for model in models:
        stats = snapshot.models.get(model)
        if stats is not None and stats.counted_n >= SAMPLES_MIN and stats.success_rate is not None:
            rates[model] = stats.success_rate
        if stats is not None and stats.ttft_n >= SAMPLES_MIN and stats.ttft_mean_ms is not None:
            times[model] = stats.ttft_mean_ms / 1000
        routes = list(routes_of(model))
        if routes and snapshot.tool_incapable.issuperset(routes):
            weak.add(model)
    return Observed(snapshot.observed_at_ms, rates, times, frozenset(weak))


class Observations:
    """The figures of the newest snapshot, while it is young enough."""

    def __init__(
        self,
        snapshot: Callable[[], StatsSnapshot],
        now_ms: Callable[[], int],
        models: Callable[[], Iterable[str]],
        routes_of: Callable[[str], Iterable[RouteKey]],
        max_age_s: float = 30.0,
    ) -> None:
        self._snapshot, self._now_ms, self._models, self._routes_of = snapshot, now_ms, models, routes_of
        self._max_age_ms = max_age_s * 1000
        self._seen: StatsSnapshot | None = None
        self._observed = NOTHING

    def now(self) -> Observed:
        """Return the figures; `NOTHING` when they are too old to be called that."""
        snapshot = self._snapshot()
        if not snapshot.observed_at_ms or self._now_ms() - snapshot.observed_at_ms > self._max_age_ms:
            return NOTHING
        if snapshot is not self._seen:
            self._observed, self._seen = observed(snapshot, self._models(), self._routes_of), snapshot
        return self._observed
