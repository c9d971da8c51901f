"""The curve's golden example, the baselines that are exact, and the gates."""

from __future__ import annotations

import numpy as np
import pytest

from turnout.bundles.fitting import gate, judge
from turnout.bundles.fitting.curves import calibration, curve, oracle_gain, read_off
from turnout.bundles.fitting.labels import LabelError, Labels

WEAK, STRONG = np.array([1.0, 0, 0, 1]), np.array([1.0, 1, 1, 0])


def test_golden_curve() -> None:
    found = curve(np.array([0.1, 0.9, 0.4, 0.2]), WEAK, STRONG)
    assert found.score.tolist() == [0.5, 0.75, 1.0, 0.75, 0.75]
    assert (found.apgr, found.cpt(0.5), found.cpt(0.8)) == (
        pytest.approx(1.125),
        pytest.approx(0.125),
        pytest.approx(0.2),
    )


def test_random_is_exactly_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    weak = (rng.random(301) < 0.4).astype(float)
    strong = (rng.random(301) < 0.8).astype(float)
    found = curve(np.zeros(301), weak, strong)
    assert (found.apgr, found.cpt(0.5), found.cpt(0.8)) == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.8))


def test_points_stand_after_whole_tie_groups_only() -> None:
    found = curve(np.array([2.0, 2.0, 1.0, 1.0]), WEAK, STRONG)
    assert found.share.tolist() == [0.0, 0.5, 1.0]


def test_nothing_beats_the_oracle() -> None:
    rng = np.random.default_rng(1)
    weak, strong = (rng.random((2, 200)) < [[0.5], [0.7]]).astype(float)
    best = curve(oracle_gain(weak, strong), weak, strong).apgr
    for _ in range(20):
        assert curve(rng.random(200), weak, strong).apgr <= best


def test_a_part_that_is_never_reached_is_no_number() -> None:
    found = curve(np.array([1.0, 0.0]), np.array([1.0, 1.0]), np.array([0.0, 1.0]))
    assert found.cpt(0.5) == 0.0  # the weak model alone is above it
    assert np.isnan(curve(np.array([1.0]), np.array([1.0]), np.array([1.0])).apgr)


def test_intervals_hold_the_figure_and_repeat() -> None:
    rng = np.random.default_rng(2)
    weak, strong = (rng.random((2, 300)) < [[0.4], [0.8]]).astype(float)
    gain = strong - weak + rng.normal(size=300)
    once, again = (read_off(gain, weak, strong, seed=3, resamples=50) for _ in range(2))
    assert once == again
    assert once.apgr.low < once.apgr.value < once.apgr.high


def test_calibration_counts_every_prompt() -> None:
    rows = calibration(np.arange(25.0), np.zeros(25), np.ones(25))
    assert sum(count for _, _, count in rows) == 25
    assert [predicted for predicted, _, _ in rows] == sorted(predicted for predicted, _, _ in rows)


def labels(scores: np.ndarray) -> Labels:
    names = tuple(f"p{at}" for at in range(len(scores)))
    return Labels(names, ("",) * len(scores), ("weak", "strong"), scores)


def test_release_gate_checks_hard_slices() -> None:
    scores = np.zeros((100, 2))
    scores[25:, 1] = 1.0  # the hardest quarter: nobody solves it …
    scores[20:25, 0] = 1.0  # … but for five prompts that the weak model solves
    scores[25:, 0] = np.arange(75) % 2
    old = np.where(np.arange(100) < 25, 0, np.where(np.arange(100) < 60, 0, 1))
    new = np.ones(100, dtype=int)  # better on average, and loses the hard slice
    found = gate.against(labels(scores), new, old)
    assert found.mean_new > found.mean_old
    assert found.hard_new < found.hard_old - 0.01
    assert not found.passed
    assert gate.against(labels(scores), old, old).passed


@pytest.mark.parametrize(("lost", "passed"), [(0.005, True), (0.006, False)])
def test_the_mean_gate(lost: float, passed: bool) -> None:  # noqa: FBT001 - a row of the table
    assert gate.Against(0.8 - lost, 0.8, 0.5, 0.5).passed is passed


def test_DiffV2PromptsFixtureSHA() -> None:
    raw = b'{"prompt_id": "1", "text": "hi", "source": "s"}\n'
    digest = "4b1b5b21e1e0f9d4e0d2d4cf7ad5d84c7d5f3f8a7c0a62ad1b6a3e9d0f3a2b1c"
    assert gate.read_fixture(raw, None)[0].text == "hi"
    with pytest.raises(LabelError, match="expected SHA-256"):
        gate.read_fixture(raw, digest)
    for bad in (b"", b"[]", b"{}", b"no"):
        with pytest.raises(LabelError):
            gate.read_fixture(bad, None)


def test_the_hardest_quarter_is_the_lowest_mean_label() -> None:
    scores = np.array([[1.0, 1], [0, 0], [1, 0], [1, 1]])
    assert judge.hardest(labels(scores)).tolist() == [False, True, False, False]


def test_diff_gate() -> None:
    def found(divergences: int, gap: float) -> bool:
        rows = tuple(gate.Divergence(str(n), "", "a", 1.0, "b", 1.0 - gap) for n in range(divergences))
        return gate.Difference(100, rows).passed

    assert found(1, 0.0009)
    assert not found(2, 0.0009)
    assert not found(1, 0.001)
    assert gate.as_csv([gate.Divergence("1", "s", "a", 1.0, "b", 0.5)]).splitlines()[1] == "1,s,a,1.0,b,0.5"
