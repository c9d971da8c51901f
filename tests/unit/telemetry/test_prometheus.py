"""The page an operator scrapes: complete against the catalogue, consistent in itself, cheap when asked for often."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families as parsed

from turnout.core.facts import AttemptFact, CallFact, RouteKey
from turnout.telemetry import catalogue
from turnout.telemetry.meter import EndpointRow, Meter
from turnout.telemetry.prometheus import Exposition

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


def busy_meter() -> Meter:
    route = RouteKey(provider="", model="m", replica="e1")
    meter = Meter()
    tried = AttemptFact(1, "solo", route, "first", 1, 2, ok=True, counted=True, committed=True)
    meter.closed(
        CallFact(
            "01", "r", 1, 2, 345, "tenant-canary", "key-canary", "openai", "/v1/chat/completions",
            True, "m", "completed", "ok", 200, (tried,), route=route, ttft_ms=40, tokens_in=10,
        )
    )  # fmt: skip
    meter.refused("invalid_json")
    meter.itl.observe(0.02)
    meter.schedule.observe(0.00004)
    meter.candidates.observe(4)
    meter.overhead.observe(0.0002)
    meter.prefix("match", 10, 8)
    meter.picked("e1")
    meter.fell_back("affinity_load", "no_match")
    meter.dropped("unreachable")
    meter.held("cold_gate")
    return meter


def exposition(meter: Meter) -> Exposition:
    return Exposition(
        meter,
        fleet_rows=lambda: [EndpointRow("e1", 3, queue_depth=1, kv_usage_ratio=0.5, unreachable=True, breaker="open")],
        queue_depths=lambda: {"m": 2},
        prefix_stats=lambda: {
            **{metric.source: door_value(metric) for metric in catalogue.PREFIX},
            "entries": 5,
            "bytes": 500,
            "slots": 3,
            "evictions": {"ttl": 7},
            "purges": 1,
        },
        ledger_stats=lambda: {
            "rows": {"calls": 3},
            "dropped": {("attempts", "full"): 1},
            "queue_depth": 0,
            "write_errors": {"locked": 1},
            "spool_bytes": 0,
            "spool_memory_bytes": 0,
            "spool_torn": 0,
            "commits": 1,
            "last_commit_s": 0.01,
            "unpriced": {"seller": 2},
            "down": 0,
            "spool_replayed": 0,
            "recovered": 0,
            "duplicates": {"calls": 0},
            **dict.fromkeys(("slots_taken", "slots_missed", "slots_unreadable", "snapshot_age_s", "derive_s"), 0),
            "read_errors": {"snapshot": 0},
        },
        coordinator_stats=lambda: {metric.source: door_value(metric) for metric in catalogue.COORDINATOR},
        choice_stats=lambda: {metric.source: door_value(metric) for metric in catalogue.CHOICES},
        disagg_stats=lambda: {metric.source: door_value(metric) for metric in catalogue.DISAGG},
        log_stats=lambda: {"dropped": 4, "suppressed": 2},
        version="1.2.3",
        clock=lambda: 0.0,
    )


def door_value(metric: catalogue.Metric) -> object:
    labels = ("x",) * len(metric.labels)
    if metric.kind == "histogram":
        return {labels: busy_meter().schedule}
    return {labels: 1} if labels else 1


def samples(page: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parsed(page.decode())
        for sample in family.samples
    }


def value(page: bytes, name: str, **labels: str) -> float:
    return samples(page)[name, frozenset(labels.items())]


def test_every_metric_of_the_catalogue_is_rendered_with_its_labels_and_no_other() -> None:
    shown: dict[str, tuple[str, set[str]]] = {}
    for family in parsed(exposition(busy_meter()).render().decode()):
        if family.name.startswith("turnout_"):
            labels = {label for sample in family.samples for label in sample.labels if label != "le"}
            shown[family.name + ("_total" if family.type == "counter" else "")] = (family.type, labels)
    assert shown == {m.name: (m.kind, set(m.labels)) for m in catalogue.METRICS}


def test_the_page_of_the_documentation_is_the_catalogue() -> None:
    assert catalogue.page() in DOCS.read_text()


def test_names_end_in_their_unit_and_counters_in_total() -> None:
    for metric in catalogue.METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        if metric.kind == "histogram":
            assert metric.name.endswith(("_seconds", "_candidates")), metric.name


def test_values_arrive_under_their_labels() -> None:
    page = exposition(busy_meter()).render()
    assert value(page, "turnout_requests_total", model="m", outcome="completed", **{"class": "ok"}) == 1
    assert value(page, "turnout_attempts_total", endpoint="e1", result="ok") == 1
    assert value(page, "turnout_in_flight", endpoint="e1") == 3
    assert value(page, "turnout_endpoint_breaker", endpoint="e1", state="open") == 1
    assert value(page, "turnout_endpoint_breaker", endpoint="e1", state="closed") == 0
    assert value(page, "turnout_ledger_dropped_total", table="attempts", reason="full") == 1
    assert value(page, "turnout_queue_depth", model="m") == 2


def test_buckets_are_cumulative_and_end_at_the_count() -> None:
    page = exposition(busy_meter()).render()
    assert value(page, "turnout_ttft_seconds_bucket", model="m", le="0.02") == 0
    assert value(page, "turnout_ttft_seconds_bucket", model="m", le="0.04") == 1
    assert value(page, "turnout_ttft_seconds_bucket", model="m", le="+Inf") == 1
    assert value(page, "turnout_ttft_seconds_count", model="m") == 1
    assert value(page, "turnout_ttft_seconds_sum", model="m") == 0.04


def test_gauges_brought_up_to_date_with_the_endpoints_are_of_this_scrape() -> None:
    meter = Meter()

    def rows() -> list[EndpointRow]:
        meter.connections_open = 5
        return []

    assert value(Exposition(meter, fleet_rows=rows).render(), "turnout_connections_open") == 5


def test_an_unknown_signal_gives_no_sample() -> None:
    page = Exposition(Meter(), fleet_rows=lambda: [EndpointRow("e1", 0)]).render().decode()
    assert 'turnout_endpoint_queue_depth{endpoint="e1"}' not in page
    assert "\nturnout_ledger_queue_depth " not in page


def test_a_hundred_scrapes_within_a_second_cost_one() -> None:
    asked = []
    now = [0.0]

    def rows() -> list[EndpointRow]:
        asked.append(1)
        return []

    page = Exposition(Meter(), fleet_rows=rows, clock=lambda: now[0])
    for _ in range(100):
        page.render()
    assert len(asked) == 1
    now[0] = 1.0
    page.render()
    assert len(asked) == 2


def test_a_container_that_grew_while_it_was_walked_is_asked_again() -> None:
    fleet = {"e1": 7}
    walked: list[str] = []

    def rows() -> list[EndpointRow]:
        found = []
        for name, in_flight in fleet.items():
            found.append(EndpointRow(name, in_flight))
            if not walked:
                walked.append(name)
                fleet["e2"] = 8
        return found

    assert value(Exposition(Meter(), fleet_rows=rows).render(), "turnout_in_flight", endpoint="e1") == 7


def test_no_tenant_or_key_is_a_label() -> None:
    page = exposition(busy_meter()).render()
    assert b"canary" not in page


def test_a_hostile_model_name_stays_inside_its_label() -> None:
    meter = Meter()
    name = 'm"} 1\nturnout_fake 1\n\\'
    meter.closed(
        CallFact("01", "r", 1, 2, 3, "t", "k", "openai", "/v1/embeddings", False, "m", "completed", "ok", 200,
                 selected_model=name)
    )  # fmt: skip
    page = Exposition(meter).render()
    assert value(page, "turnout_requests_total", model=name, outcome="completed", **{"class": "ok"}) == 1
    assert b"\nturnout_fake" not in page
