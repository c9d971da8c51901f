import math

import pytest

from turnout.core.kit.ewma import Ewma
from turnout.core.kit.lru import LruMap
from turnout.core.kit.ratio_window import RatioWindow
from turnout.core.kit.rotation import Rotation
from turnout.core.kit.ulid import UlidSource, ulid


def test_ewma_moves_by_its_weight() -> None:
    assert Ewma(4.0, 0.05).add(8.0) == pytest.approx(4.2)


def test_ewma_clamps_samples_and_ignores_nan() -> None:
    mean = Ewma(4.0, 0.5, low=1.0, high=8.0)
    assert mean.add(1e9) == 6.0
    assert mean.add(math.nan) == 6.0
    assert mean.add(-1e9) == 3.5


def test_lru_drops_the_longest_unused() -> None:
    names: LruMap[str, int] = LruMap(2)
    names.put("a", 1)
    names.put("b", 2)
    assert names.use("a") == 1
    names.put("c", 3)
    assert ("a" in names, "b" in names, "c" in names, len(names)) == (True, False, True, 2)


def test_lru_peek_renews_nothing() -> None:
    names: LruMap[str, int] = LruMap(2)
    names.put("a", 1)
    names.put("b", 2)
    assert names.peek("a") == 1
    names.put("c", 3)
    assert names.peek("a") is None


def test_lru_drop_is_idempotent() -> None:
    names: LruMap[str, int] = LruMap(2)
    names.put("a", 1)
    names.drop("a")
    names.drop("a")
    assert len(names) == 0


def test_lru_refuses_a_bound_of_nothing() -> None:
    with pytest.raises(ValueError, match="maximum is 0, expected at least 1"):
        LruMap(0)


def test_rotation_hands_out_turns_from_its_seed() -> None:
    rotation = Rotation(seed=4)
    assert [rotation.turn(3) for _ in range(4)] == [1, 2, 0, 1]


def test_ratio_window_forgets_what_left_it() -> None:
    window = RatioWindow(10.0)
    window.add_bad(100.0)
    window.add_good(105.0)
    assert window.totals(105.0) == (1, 2)
    assert window.totals(110.0) == (0, 1)
    assert window.totals(1000.0) == (0, 0)


def test_ratio_window_survives_a_clock_that_steps_back() -> None:
    window = RatioWindow(10.0)
    window.add_good(100.0)
    window.add_bad(50.0)
    assert window.totals(100.0) == (1, 2)


def test_ulid_of_the_specification() -> None:
    # The timestamp example of github.com/ulid/spec: 1469918176385 is 01ARYZ6S41.
    assert ulid(1469918176385, 0) == "01ARYZ6S410000000000000000"
    assert ulid(2**48 - 1, 2**80 - 1) == "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"


def test_ulids_of_one_source_increase_within_a_millisecond_and_over_a_clock_step() -> None:
    source = UlidSource()
    made = [source.next(5, 2**80 - 2), source.next(5, 7), source.next(5, 7), source.next(4, 9), source.next(9, 0)]
    assert made == sorted(set(made))
