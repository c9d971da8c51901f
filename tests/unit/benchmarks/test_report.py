"""From the harness' JSON lines to tables of medians and bars."""

from __future__ import annotations

import json

import pytest
from benchmarks.report import (
    BARS,
    Bar,
    Row,
    Runs,
    bars_table,
    judge,
    medians_table,
    rows_of,
    scheduling_bars,
    with_section,
)

SMALL = Bar("small requests/s", "small", "rps", "higher", 2.5, 4.5, ("sglang-ca",))
ADDED = Bar("added p50", "r1000", "p50_us", "lower", 0.8, 0.55, ("sglang-ca", "sglang-rr"), added=True)
LAG = Bar("lag", "sse1000", "lag_p99_us", "lower", 10, 3, unit=" ms", scale=1e-3)


def row(target: str, test: str, only_round: int = 0, **figures: float) -> Row:
    return {
        "target": target,
        "test": test,
        "round": only_round,
        "sent": 1000,
        "bad": 0,
        "err": 0,
        "short": 0,
        **figures,
    }


def runs(*rows: Row) -> Runs:
    return Runs(rows_of(json.dumps(each) for each in rows))


def test_a_test_in_which_nothing_was_sent_has_no_row() -> None:
    assert rows_of(['{"target": "mine", "test": "small", "round": 0}', ""]) == []


@pytest.mark.parametrize("line", ["nonsense", "[1]"])
def test_a_line_that_is_no_object_is_refused_by_number(line: str) -> None:
    with pytest.raises(ValueError, match="line 2: expected a JSON object"):
        rows_of(["{}", line])


def test_the_median_is_over_rounds() -> None:
    seen = runs(*(row("mine", "small", n, rps=rps) for n, rps in enumerate((10, 90, 20))))
    assert seen.median("mine", "small", "rps") == 20


def test_a_percentile_of_no_samples_is_not_measured() -> None:
    assert runs(row("mine", "small", p50_us=-1)).median("mine", "small", "p50_us") is None


def test_a_ratio_is_of_medians_with_the_spread_of_rounds() -> None:
    mine = [row("mine", "small", n, rps=rps) for n, rps in enumerate((300, 400, 500))]
    peer = [row("sglang-ca", "small", n, rps=100) for n in range(3)]
    judged = judge(runs(*mine, *peer), SMALL)
    assert (judged.against, judged.measured, judged.verdict) == (
        "sglang-ca",
        "4\N{MULTIPLICATION SIGN} (3\N{EN DASH}5)",
        "met",
    )


@pytest.mark.parametrize(("rps", "verdict"), [(249, "**not met**"), (250, "met"), (449, "met"), (450, "moonshot")])
def test_the_verdict_at_its_boundaries(rps: float, verdict: str) -> None:
    assert judge(runs(row("mine", "small", rps=rps), row("sglang-ca", "small", rps=100)), SMALL).verdict == verdict


@pytest.mark.parametrize(("us", "verdict"), [(10_001, "**not met**"), (10_000, "met"), (3000, "moonshot")])
def test_an_absolute_bar_needs_no_peer(us: float, verdict: str) -> None:
    assert judge(runs(row("mine", "sse1000", lag_p99_us=us)), LAG).verdict == verdict


def test_added_latency_is_beyond_the_direct_one_and_against_the_better_peer() -> None:
    figures = {"direct": 100, "mine": 200, "sglang-ca": 500, "sglang-rr": 300}
    judged = judge(runs(*(row(name, "r1000", p50_us=us) for name, us in figures.items())), ADDED)
    assert (judged.against, judged.measured, judged.verdict) == ("sglang-rr", "0.5\N{MULTIPLICATION SIGN}", "moonshot")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row("sglang-ca", "small", rps=1)], "no rows of mine in small"),
        ([row("mine", "small", rps=1)], "no rows of sglang-ca in small"),
    ],
)
def test_what_was_not_measured_says_why(rows: list[Row], reason: str) -> None:
    assert judge(runs(*rows), SMALL).verdict == f"not measured: {reason}"


def test_added_latency_without_the_direct_figure_is_not_measured() -> None:
    assert judge(runs(row("mine", "r1000", p50_us=1)), ADDED).verdict == "not measured: no rows of direct"


def test_a_peer_that_adds_nothing_cannot_be_divided_by() -> None:
    rows = [row(name, "r1000", p50_us=100) for name in ("direct", "mine", "sglang-ca")]
    assert judge(runs(*rows), ADDED).verdict.startswith("not measured: sglang-ca adds nothing")


def test_a_figure_with_failed_requests_is_not_valid() -> None:
    rows = [row("mine", "small", rps=900, bad=2) | {"err": 1}, row("sglang-ca", "small", rps=100)]
    assert judge(runs(*rows), SMALL).verdict == "not valid: 3 of 1,000 requests failed"


def test_failures_of_the_peer_are_told() -> None:
    rows = [row("mine", "small", rps=900), row("sglang-ca", "small", rps=100, bad=7)]
    assert judge(runs(*rows), SMALL).verdict == "moonshot (sglang-ca failed 7 of 1,000)"


def test_every_bar_of_an_empty_run_is_a_line() -> None:
    lines = bars_table(judge(runs(), bar) for bar in BARS).splitlines()
    assert len(lines) == len(BARS) + 2
    assert all("not measured" in line for line in lines[2:])


def test_the_medians_table_has_one_line_per_target_and_no_cpu_for_direct() -> None:
    seen = runs(
        row("direct", "small", rps=271_700, cpu_us_req=0, start_s=0, rss_idle_mb=0),
        row("mine", "small", rps=53_900, cpu_us_req=19, start_s=0.21, rss_idle_mb=33),
    )
    direct, mine = medians_table(seen).splitlines()[2:]
    assert direct.startswith("| direct | 271,700 (\N{EN DASH}) |")
    assert mine.startswith("| **mine** | 53,900 (19.0) |")
    assert mine.endswith("| 0.21 | 0 of 1,000 |")


def test_the_slowest_case_of_64_endpoints_counts_for_scheduling() -> None:
    output = (
        "index: 999,496 entries, 115 B of process memory each\n"
        "turnout, 4 endpoints, match                    p50    4.28 µs   p99  900.25 µs\n"
        "turnout, 64 endpoints, 128 blocks, match       p50   61.56 µs   p99  147.89 µs\n"
        "turnout, all report, caches full, miss         p50   34.11 µs   p99   56.01 µs\n"
    )
    assert [(each.measured, each.verdict) for each in scheduling_bars(output)] == [("148 µs", "met"), ("115 B", "met")]


def test_scheduling_that_was_not_measured_says_so() -> None:
    assert {each.verdict for each in scheduling_bars("")} == {"not measured: bench_schedule.py"}


def test_a_section_is_replaced_and_the_others_stay() -> None:
    page = with_section(with_section("# Results\n", "A", "one"), "B", "two")
    assert page == "# Results\n\n## A\n\none\n\n## B\n\ntwo\n"
    assert with_section(page, "A", "new") == "# Results\n\n## A\n\nnew\n\n## B\n\ntwo\n"
    assert with_section(page, "B", "new") == "# Results\n\n## A\n\none\n\n## B\n\nnew\n"
