"""The demo's figures, from what its clients saw."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from turnout.cli.demo_report import (
    endpoint_table,
    explain_table,
    figure_lines,
    hit_ratio,
    percentile,
    snippets,
    summary,
)
from turnout.cli.demo_workload import Sent


def sent(
    endpoint: str = "a",
    *,
    tokens_in: int | None = 100,
    cached: int | None = 50,
    ttft_s: float | None = 0.01,
    error: str = "",
) -> Sent:
    return Sent(
        endpoint=endpoint,
        decision="d",
        stream=ttft_s is not None,
        e2e_s=1.0,
        ttft_s=ttft_s,
        tokens_in=tokens_in,
        tokens_cached=cached,
        error=error,
    )


def shown(table: Table) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(table)
    return out.getvalue()


def test_requests_are_grouped_by_endpoint_with_their_share_and_hit_rate() -> None:
    figures = summary([sent("b"), sent("a", cached=100), sent("a", cached=None), sent("a", cached=50)])
    assert [(row.endpoint, row.requests, row.share_ratio, row.hit_ratio) for row in figures.rows] == [
        ("a", 3, 0.75, 0.5),
        ("b", 1, 0.25, 0.5),
    ]
    assert figures.hit_ratio == 0.5


def test_failed_requests_are_told_and_left_out_of_rates() -> None:
    figures = summary([sent("a"), sent("", cached=0, error="status 503: full"), sent("", error="later")])
    assert (figures.requests, figures.failed, figures.first_error) == (3, 2, "status 503: full")
    assert [row.endpoint for row in figures.rows] == ["a"]
    assert "First error      status 503: full" in figure_lines(figures, None)


def test_without_any_answer_there_is_still_a_report() -> None:
    figures = summary([])
    assert (figures.rows, figures.hit_ratio, figures.ttft_s) == ((), None, ())
    assert "-" in figure_lines(figures, 0)[1]
    assert "endpoint" in shown(endpoint_table(figures))


def test_an_engine_that_reports_no_cached_tokens_has_no_hit_rate() -> None:
    assert hit_ratio([sent(cached=None), sent(cached=None)]) is None
    assert hit_ratio([sent(tokens_in=0, cached=0)]) is None


@pytest.mark.parametrize(("p", "expected"), [(50, 2), (90, 4), (99, 4), (25, 1), (1, 1), (100, 4)])
def test_percentiles_are_nearest_ranks(p: int, expected: int) -> None:
    assert percentile([1, 2, 3, 4], p) == expected


def test_candidates_of_a_decision_are_shown_by_rank_with_the_pick() -> None:
    explain = {
        "policy": "affinity_load",
        "blocks": 9,
        "picked": "b",
        "candidates": [
            {"endpoint": "a", "matched_blocks": 0, "total": 2.5, "unit": "score", "rank": 1},
            {"endpoint": "b", "matched_blocks": 8, "total": 0.25, "rank": 0},
        ],
    }
    table = explain_table(explain)
    assert table is not None
    assert "score" in shown(table)
    lines = [line for line in shown(table).splitlines() if "of 9" in line]
    assert ["b" in lines[0] and "picked" in lines[0], "picked" in lines[1]] == [True, False]


@pytest.mark.parametrize("explain", [{}, {"candidates": None}, {"candidates": [1, "x"]}])
def test_a_decision_without_candidates_gives_no_table(explain: dict[str, object]) -> None:
    assert explain_table(explain) is None


def test_the_snippets_hold_the_real_address_and_key() -> None:
    text = snippets("http://127.0.0.1:8081", "http://127.0.0.1:9091", "demo-abc", "sim-8b", "")
    assert "http://127.0.0.1:8081/v1/chat/completions -H 'authorization: Bearer demo-abc'" in text
    assert 'OpenAI(base_url="http://127.0.0.1:8081/v1", api_key="demo-abc")' in text
    assert "http://127.0.0.1:9091/metrics" in text
