from __future__ import annotations

import math

import pytest

from turnout.sim.replay.bounds import pooled_lru, unlimited
from turnout.sim.replay.capacity import Search
from turnout.sim.replay.faults import parse_fault
from turnout.sim.replay.itl import GapHistogram
from turnout.sim.replay.options import Fault, ReplayOptions, cold_prefill_s
from turnout.sim.replay.paired import paired_difference
from turnout.sim.replay.trace import TraceRequest


def test_a_series_of_gaps_is_counted_gap_by_gap() -> None:
    jumped, stepped = GapHistogram(), GapHistogram()
    jumped.add_series(0.02, 1e-5, 500, 3)
    for step in range(500):
        stepped.add_series(0.02 + 1e-5 * step, 0.0, 1, 3)
    assert jumped.total == stepped.total == 1500
    for share in (0.01, 0.5, 0.99):
        assert jumped.quantile(share) == pytest.approx(stepped.quantile(share), rel=0.021)


def test_no_gap_has_no_quantile() -> None:
    assert GapHistogram().quantile(0.5) is None


def test_bounds_of_the_hit_rate() -> None:
    order = [_request([1, 2]), _request([1, 2]), _request([3, 4]), _request([1, 2])]
    # Of 9 tokens each, two full blocks of 4 can be found.
    assert unlimited(order, 4) == pytest.approx(16 / 36)
    assert pooled_lru(order, 4, 100) == pytest.approx(16 / 36)
    assert pooled_lru(order, 4, 2) == pytest.approx(8 / 36)


def test_the_last_prompt_token_is_never_found() -> None:
    order = [_request([1, 2], prompt=8), _request([1, 2], prompt=8)]
    assert unlimited(order, 4) == pytest.approx(4 / 16)


def test_differences_have_an_interval_that_shrinks_to_a_constant_gap() -> None:
    constant = paired_difference([2.0] * 200, [1.0] * 200, seed=3)
    assert constant == {"mean": 1.0, "low": 1.0, "high": 1.0, "pairs": 200}
    noisy = paired_difference([float(value % 7) for value in range(700)], [3.0] * 700, seed=3)
    assert noisy["low"] <= noisy["mean"] <= noisy["high"]
    assert noisy == paired_difference([float(value % 7) for value in range(700)], [3.0] * 700, seed=3)


def test_unpaired_values_are_refused() -> None:
    with pytest.raises(ValueError, match="1 values against 2"):
        paired_difference([1.0], [1.0, 2.0], seed=0)


@pytest.mark.parametrize("start", [0.1, 1.0, 10.0])
def test_search_closes_in_on_the_load_where_the_share_falls(start: float) -> None:
    search = Search("p", start, 0.01)
    while not search.done:
        search.heard(1.0 - 0.05 * (search.load / 1.7) ** 4, 0.95)
    assert search.low <= 1.7 <= search.high <= search.low * 1.01
    assert search.at_share(0.95) == pytest.approx(1.7, rel=0.01)


def test_search_ends_where_no_load_will_do() -> None:
    search = Search("p", 1.0, 0.01)
    while not search.done:
        search.heard(0.0, 0.95)
    assert search.at_share(0.95) == 0.0


def test_cold_prefill_is_the_sum_of_its_chunks() -> None:
    shape = ReplayOptions(profile="70b").shape(512)
    one = 2048 * 71e-6 + 1.66e-9 * 2048 * 2048 + 0.004
    two = 1000 * 71e-6 + 1.66e-9 * 1000 * 3048 + 0.004
    assert cold_prefill_s(shape, 3048) == pytest.approx(one + two)


def test_faults_are_read_from_text() -> None:
    assert parse_fault("dead:1:60:360") == Fault(kind="dead", engine=1, from_s=60, until_s=360)
    assert parse_fault("slow:0:0::2") == Fault(kind="slow", engine=0, from_s=0, until_s=math.inf, factor=2.0)


@pytest.mark.parametrize("text", ["dead", "dead:1:2:3:4", "slow:0:1:2", "dead:x:1:2", "melt:0:1:2", "slow:0:1:2:0"])
def test_other_faults_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="fault = "):
        parse_fault(text)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"endpoints": 0}, "endpoints = 0"),
        ({"load": math.nan}, "load = nan"),
        ({"profile": "9t"}, "profile = '9t'"),
        ({"reports": "some"}, "reports = 'some'"),
        ({"faults": (Fault(kind="dead", engine=8),)}, "engine = 8"),
        ({"faults": (Fault(kind="dead", engine=0, from_s=5, until_s=4),)}, "from 5"),
    ],
)
def test_options_outside_their_range_are_named(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ReplayOptions(**change)  # type: ignore[arg-type]


def test_unsynchronised_routers_scrape_faster() -> None:
    assert ReplayOptions().interval_s == 0.2
    assert ReplayOptions(routers=4).interval_s == 0.05
    assert ReplayOptions(routers=4, bus=True).interval_s == 0.2
    assert ReplayOptions(routers=4, reports="none").interval_s == 0.0


def _request(keys: list[int], prompt: int = 9) -> TraceRequest:
    return TraceRequest(prompt_tokens=prompt, output_tokens=1, keys=keys)
