"""What is counted for one closed exchange, and that no input makes the label sets grow without end."""

from __future__ import annotations

import math

import pytest

from turnout.core.errors import Outcome
from turnout.core.facts import AttemptFact, CallFact, RouteKey
from turnout.telemetry.meter import LABEL_MAX, NONE, OTHER, Histogram, Meter


def attempt(endpoint: str = "e1", error_kind: str = "", route: RouteKey | None = None) -> AttemptFact:
    return AttemptFact(
        attempt_no=1,
        phase="solo",
        route=route or RouteKey(provider="", model="m", replica=endpoint),
        kind="first",
        started_at_ms=1,
        ended_at_ms=2,
        ok=not error_kind,
        counted=True,
        committed=not error_kind,
        error_kind=error_kind,
    )


def call(**changes: object) -> CallFact:
    fields: dict[str, object] = {
        "call_id": "01",
        "request_id": "r",
        "started_at_ms": 1,
        "ended_at_ms": 346,
        "e2e_ms": 345,
        "tenant": "t",
        "key_id": "k",
        "dialect": "openai",
        "path": "/v1/chat/completions",
        "stream": True,
        "requested_model": "m",
        "outcome": "completed",
        "cls": "ok",
        "http_status": 200,
        "attempts": (attempt(),),
        "route": RouteKey(provider="", model="m", replica="e1"),
    }
    return CallFact(**{**fields, **changes})  # type: ignore[arg-type]


def test_one_call_is_one_request_with_its_attempts_times_and_tokens() -> None:
    meter = Meter()
    meter.closed(
        call(
            attempts=(attempt("e1", "connect_error"), attempt("e2")),
            ttft_ms=40,
            tokens_in=90,
            tokens_out=20,
            tokens_cached=64,
            est_tokens=100,
        )
    )
    counts = meter.models["m"]
    assert counts.requests == {("completed", "ok"): 1}
    assert meter.attempts == {("e1", "connect_error"): 1, ("e2", "ok"): 1}
    assert (counts.e2e.count, counts.ttft.count) == (1, 1)
    assert (counts.tokens_in, counts.tokens_out, counts.tokens_cached) == (90, 20, 64)
    assert counts.overestimates == 1


def test_unknown_times_and_tokens_are_not_counted_as_zero() -> None:
    meter = Meter()
    meter.closed(call())
    assert meter.models["m"].ttft.count == 0
    assert meter.models["m"].overestimates == 0


@pytest.mark.parametrize("ms", [1, 2, 5, 9, 10, 20, 40, 60, 80, 100, 150, 250, 500, 750, 1000, 2500, 120_000])
def test_a_value_on_a_bound_belongs_to_that_bucket(ms: int) -> None:
    histogram = Histogram((ms / 1000, 1e6))
    histogram.observe(ms / 1000)
    assert histogram.counts == [1, 0, 0]


def test_histograms_are_histograms() -> None:
    """T27: declared buckets, one value in exactly one of them, the sum beside."""
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.5, 5.0):
        histogram.observe(value)
    assert histogram.counts == [1, 1, 1]
    assert histogram.sum == pytest.approx(5.55)


@pytest.mark.parametrize("value", [math.nan, -0.001, -math.inf])
def test_a_value_that_is_no_measurement_changes_nothing(value: float) -> None:
    histogram = Histogram((0.1,))
    histogram.observe(value)
    assert (histogram.counts, histogram.sum) == ([0, 0], 0.0)


@pytest.mark.parametrize("bounds", [(), (1.0, 1.0), (2.0, 1.0)])
def test_bounds_must_increase(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="strictly increasing"):
        Histogram(bounds)


def test_models_beyond_the_cap_share_one_label() -> None:
    meter = Meter()
    for n in range(LABEL_MAX + 50):
        meter.closed(call(selected_model=f"m{n}"))
    assert len(meter.models) == LABEL_MAX + 1
    assert meter.models[OTHER].requests == {("completed", "ok"): 50}


def test_endpoints_beyond_the_cap_share_one_label() -> None:
    meter = Meter()
    for n in range(LABEL_MAX + 50):
        meter.closed(call(attempts=(attempt(f"e{n}"),)))
        meter.picked(f"e{n}")
    assert meter.attempts[OTHER, "ok"] == 50
    assert meter.picks[OTHER] == 50
    assert len(meter.picks) == LABEL_MAX + 1


def test_a_name_only_the_client_chose_is_never_a_label() -> None:
    meter = Meter()
    for outcome in Outcome:
        meter.closed(call(outcome=outcome.value, route=None, attempts=(), requested_model="typed-by-client"))
    counted = {ending for ending, _ in meter.models["typed-by-client"].requests}
    assert counted.isdisjoint({"model_not_found", "invalid_selection", "rate_limited", "quota_exhausted"})
    assert ("model_not_found", "ok") in meter.models[NONE].requests


def test_a_deployment_without_replica_is_named_by_its_provider() -> None:
    meter = Meter()
    for _ in range(3):
        meter.closed(call(attempts=(attempt(route=RouteKey(provider="acme", model="m", replica="")),)))
    assert meter.attempts == {("acme", "ok"): 3}


def test_the_row_of_a_pair_has_no_endpoint() -> None:
    meter = Meter()
    pair = AttemptFact(1, "pair", None, "first", 1, 2, ok=True, counted=True, committed=True)
    meter.closed(call(attempts=(pair, attempt("p"), attempt("d"))))
    assert meter.attempts == {(NONE, "ok"): 1, ("p", "ok"): 1, ("d", "ok"): 1}


def test_codes_and_reasons_are_bounded() -> None:
    meter = Meter()
    for n in range(1000):
        meter.refused(f"c{n}")
        meter.dropped(f"r{n}")
        meter.fell_back("p", f"f{n}")
        meter.prefix(f"x{n}", 2, 1)
    assert max(len(meter.refusals), len(meter.drops), len(meter.fallbacks), len(meter.prefix_lookups)) <= 129
    assert sum(meter.refusals.values()) == sum(meter.fallbacks.values()) == 1000
    assert (meter.prefix_blocks_total, meter.prefix_matched_blocks_total) == (2000, 1000)
