"""Meter and stats rendered as Prometheus text by the official client, at scrape time only.

Import this module lazily: the client library costs 100 ms. `Exposition.render` may run on any thread (a page of a
thousand models takes 350 ms); the callables it was given run there too, and are asked again when the loop changed a
container under them.
"""

from __future__ import annotations

import math
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from turnout.telemetry import catalogue
from turnout.telemetry.catalogue import BY_NAME, Metric
from turnout.telemetry.meter import EndpointRow, Histogram, Meter, ModelCounts

T = TypeVar("T")
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Rows = Iterable[tuple[Sequence[str], float]]

BREAKER_STATES = ("closed", "open", "half_open")
ASK_AGAIN = 3
CACHED_S = 1.0
"""A page younger than this is served again: a hundred scrapes at once cost one (F79)."""


def _nothing() -> dict[str, Any]:
    return {}


def _no_rows() -> list[EndpointRow]:
    return []


class Exposition(Collector):
    """The custom collector over a `Meter`, and the page it renders.

    `ledger_stats`, `prefix_stats`, `coordinator_stats`, `choice_stats`, `disagg_stats` and `log_stats` map the `source`
    keys of the catalogue to a number, or to a mapping from label value (or tuple of them) to a number or histogram; a
    missing key gives no sample.
    `queue_depths` maps models.
    """

    def __init__(
        self,
        meter: Meter,
        *,
        fleet_rows: Callable[[], Sequence[EndpointRow]] = _no_rows,
        queue_depths: Callable[[], Mapping[str, int]] = _nothing,
        prefix_stats: Callable[[], Mapping[str, Any]] = _nothing,
        ledger_stats: Callable[[], Mapping[str, Any]] = _nothing,
        coordinator_stats: Callable[[], Mapping[str, Any]] = _nothing,
        choice_stats: Callable[[], Mapping[str, Any]] = _nothing,
        disagg_stats: Callable[[], Mapping[str, Any]] = _nothing,
        log_stats: Callable[[], Mapping[str, Any]] = _nothing,
        version: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._meter = meter
        self._fleet_rows = fleet_rows
        self._queue_depths = queue_depths
        self._stats = (
            (catalogue.PREFIX, prefix_stats),
            (catalogue.LEDGER, ledger_stats),
            (catalogue.COORDINATOR, coordinator_stats),
            (catalogue.CHOICES, choice_stats),
            (catalogue.DISAGG, disagg_stats),
            (catalogue.PROCESS[1:], log_stats),
        )
        self._version = version
        self._clock = clock
        self._lock = threading.Lock()
        self._page = b""
        self._page_at = -math.inf
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """The page in text format 0.0.4; at most `CACHED_S` old."""
        with self._lock:
            now = self._clock()
            if now - self._page_at >= CACHED_S:
                self._page = generate_latest(self._registry)
                self._page_at = now
            return self._page

    def describe(self) -> list[Any]:
        """No families in advance: registration must not collect."""
        return []

    def collect(self) -> Iterator[Family]:
        """Every family of the catalogue, with the samples there are."""
        meter = self._meter
        # Asked first: who answers may bring the meter's plain gauges up to date on the way.
        endpoints = _asked(self._fleet_rows)
        yield from self._requests(list(meter.models.items()))
        yield _family("turnout_attempts_total", list(meter.attempts.items()))
        yield _family("turnout_refusals_total", _labelled(meter.refusals))
        yield _histogram("turnout_itl_seconds", [((), meter.itl)])
        yield _histogram("turnout_overhead_seconds", [((), meter.overhead)])
        yield _histogram("turnout_schedule_seconds", [((), meter.schedule)])
        yield _histogram("turnout_schedule_candidates", [((), meter.candidates)])
        yield _family("turnout_schedule_picks_total", _labelled(meter.picks))
        yield _family("turnout_schedule_dropped_total", _labelled(meter.drops))
        yield _family("turnout_schedule_held_total", _labelled(meter.holds))
        yield _family("turnout_schedule_fallback_total", list(meter.fallbacks.items()))
        yield _family("turnout_prefix_lookups_total", _labelled(meter.prefix_lookups))
        yield _family("turnout_prefix_blocks_total", [((), meter.prefix_blocks_total)])
        yield _family("turnout_prefix_matched_blocks_total", [((), meter.prefix_matched_blocks_total)])
        for metric in catalogue.PLAIN:
            yield _family(metric.name, [((), getattr(meter, metric.source))])
        yield _family("turnout_queue_depth", _labelled(_asked(self._queue_depths)))
        yield from _endpoints(endpoints)
        for metrics, stats in self._stats:
            values = _asked(stats)
            for metric in metrics:
                value = values.get(metric.source)
                if metric.kind == "histogram":
                    yield _histogram(metric.name, list((value or {}).items()))
                else:
                    yield _family(metric.name, list(_stat_rows(metric, value)))
        yield _family("turnout_build_info", [((self._version, platform.python_version()), 1)])

    @staticmethod
    def _requests(models: list[tuple[str, ModelCounts]]) -> Iterator[Family]:
        yield _family(
            "turnout_requests_total",
            [((model, *ending), n) for model, counts in models for ending, n in list(counts.requests.items())],
        )
        yield _histogram("turnout_ttft_seconds", [((model,), counts.ttft) for model, counts in models])
        yield _histogram("turnout_e2e_seconds", [((model,), counts.e2e) for model, counts in models])
        yield _family("turnout_tokens_in_total", [((model,), counts.tokens_in) for model, counts in models])
        yield _family("turnout_tokens_out_total", [((model,), counts.tokens_out) for model, counts in models])
        yield _family("turnout_tokens_cached_total", [((model,), counts.tokens_cached) for model, counts in models])
        yield _family(
            "turnout_prompt_overestimates_total", [((model,), counts.overestimates) for model, counts in models]
        )


def _asked(question: Callable[[], T]) -> T:
    """The answer of a callable that walks containers of the loop's thread, asked again if one grew meanwhile."""
    for _ in range(ASK_AGAIN):
        try:
            return question()
        except RuntimeError:  # "dictionary changed size during iteration"
            continue
    return question()


def _endpoints(rows: Sequence[EndpointRow]) -> Iterator[Family]:
    yield _family("turnout_in_flight", [((r.endpoint,), r.in_flight) for r in rows])
    yield _family(
        "turnout_endpoint_queue_depth", [((r.endpoint,), r.queue_depth) for r in rows if r.queue_depth is not None]
    )
    yield _family(
        "turnout_endpoint_kv_usage_ratio",
        [((r.endpoint,), r.kv_usage_ratio) for r in rows if r.kv_usage_ratio is not None],
    )
    yield _family("turnout_endpoint_unreachable", [((r.endpoint,), r.unreachable) for r in rows])
    yield _family("turnout_endpoint_probe_failing", [((r.endpoint,), r.probe_failing) for r in rows])
    yield _family(
        "turnout_endpoint_breaker",
        [((r.endpoint, state), state == r.breaker) for r in rows for state in BREAKER_STATES],
    )


def _labelled(counts: Mapping[str, int]) -> list[tuple[tuple[str], int]]:
    return [((name,), n) for name, n in list(counts.items())]


def _family(name: str, rows: Rows) -> Family:
    metric = BY_NAME[name]
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(name, metric.help, labels=metric.labels)
    for labels, value in rows:
        family.add_metric(labels, float(value))
    return family


def _histogram(name: str, rows: Iterable[tuple[Sequence[str], Histogram]]) -> Family:
    metric = BY_NAME[name]
    family = HistogramMetricFamily(name, metric.help, labels=metric.labels)
    for labels, histogram in rows:
        bounds = [*(repr(bound) for bound in histogram.bounds), "+Inf"]
        # One copy of the counts, so that +Inf and the buckets agree while the loop goes on counting.
        cumulative = list(accumulate(list(histogram.counts)))
        family.add_metric(labels, list(zip(bounds, cumulative, strict=True)), histogram.sum)
    return family


def _stat_rows(metric: Metric, value: object) -> Iterator[tuple[tuple[str, ...], float]]:
    """Samples of one stats value; a number for a labelled metric, or the reverse, is shown under empty labels."""
    if isinstance(value, Mapping):
        for key, number in list(value.items()):
            labels = tuple(str(part) for part in key) if isinstance(key, tuple) else (str(key),)
            if isinstance(number, Mapping):
                for inner, count in list(number.items()):
                    yield _fitted(metric, (*labels, str(inner))), float(count)
            else:
                yield _fitted(metric, labels), float(number)
    elif isinstance(value, (int, float)):
        yield _fitted(metric, ()), float(value)


def _fitted(metric: Metric, labels: tuple[str, ...]) -> tuple[str, ...]:
    size = len(metric.labels)
    return (*labels, *("",) * size)[:size]
