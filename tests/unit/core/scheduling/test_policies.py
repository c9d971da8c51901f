import random
from collections import Counter

import pytest

from turnout.core.kit.rotation import Rotation
from turnout.core.scheduling.decision import Decision
from turnout.core.scheduling.policies import POLICIES, affinity_totals

NAMES = ("A", "B", "C")


def columns(
    policy: str,
    depths: list[int],
    busy: list[float],
    blocks: int = 512,
    *,
    last: str = "",
    names: tuple[str, ...] = NAMES,
    recency: list[int] | None = None,
) -> Decision:
    result = "match" if any(depths) else "miss"
    decision = Decision(None, "m", policy, [], names, depths, busy, busy, blocks, 8192, 16.0, 1.0, result, 0.0, 0, last)
    decision.recency = recency or [0] * len(names)
    return decision


def pick(decision: Decision, rotation: Rotation | None = None, rng: random.Random | None = None) -> str:
    policy = POLICIES[decision.policy]
    return decision.names[policy(decision, rotation or Rotation(), rng or random.Random(1))]


# scheduling §5.1: T = 8192, block 16, matched 6144, 0, 2048 tokens; running + waiting 14, 2, 5.
GOLDEN_DEPTHS = [384, 0, 128]
GOLDEN_BUSY: list[float] = [14, 2, 5]


@pytest.mark.parametrize(("policy", "expected"), [("least_busy", "B"), ("longest_prefix", "A"), ("affinity_load", "B")])
def test_golden_state(policy: str, expected: str) -> None:
    assert pick(columns(policy, GOLDEN_DEPTHS, GOLDEN_BUSY)) == expected


def test_golden_totals_of_affinity_load() -> None:
    totals = affinity_totals(GOLDEN_DEPTHS, GOLDEN_BUSY, 512, 1.0)
    assert [round(total, 4) for total in totals] == [-0.25, 0.7143, 0.5357]


def test_affinity_yields_and_survives() -> None:
    """T59: the owner is left when it is far busier, kept when it is little busier, and nobody else loses affinity."""
    assert pick(columns("affinity_load", [4, 0, 0], [3, 2, 2], blocks=4)) == "A"
    assert pick(columns("affinity_load", [4, 0, 0], [40, 2, 2], blocks=4)) == "B"
    assert pick(columns("affinity_load", [0, 0, 4], [40, 2, 2], blocks=4)) == "C"


def test_affinity_ties_go_to_the_less_busy_then_to_the_first_name() -> None:
    # mean 1: A scores 1 − 1 = 0, B and C 0 − (−0.5) = 0.5.
    tied = columns("affinity_load", [2, 0, 0], [2, 0.5, 0.5], blocks=2)
    assert pick(tied) == "B"
    assert tied.tie == "busy,name"
    # mean 2/3, span 1: A scores .5 − 1/3 and B 0 + 1/6, equal after rounding, B is less busy.
    assert pick(columns("affinity_load", [1, 0, 0], [1.0, 0.5, 0.5], blocks=2)) == "B"


def test_scores_that_differ_beyond_rounding_only_are_equal() -> None:
    decision = columns("affinity_load", [1, 1, 0], [1.0, 1.0 + 1e-9, 5.0], blocks=1)
    assert pick(decision) == "A"


def test_least_busy_ties_go_to_the_first_name() -> None:
    assert pick(columns("least_busy", [0, 0, 0], [3, 1, 1])) == "B"


@pytest.mark.parametrize(
    ("last", "expected"), [("", "A"), ("A", "B"), ("B", "C"), ("C", "A"), ("Bb", "C"), ("gone-and-late", "A")]
)
def test_round_robin_takes_the_name_after_the_last(last: str, expected: str) -> None:
    assert pick(columns("round_robin", [0, 0, 0], [9, 9, 0], last=last)) == expected


def test_random_is_uniform() -> None:
    rng = random.Random(5)
    counts = Counter(pick(columns("random", [0, 0, 0], [0, 0, 9]), rng=rng) for _ in range(3000))
    assert all(900 < counts[name] < 1100 for name in NAMES)


def test_power_of_two_never_takes_the_busiest_and_ties_to_the_first() -> None:
    rng = random.Random(5)
    counts = Counter(pick(columns("power_of_two", [0, 0, 0], [1, 5, 1]), rng=rng) for _ in range(3000))
    assert counts["B"] == 0
    assert counts["A"] == pytest.approx(2000, abs=100)


def test_power_of_two_with_one_candidate() -> None:
    assert pick(columns("power_of_two", [0], [0], names=("A",))) == "A"


def test_longest_prefix_breaks_ties_by_recency_then_load_then_rotation() -> None:
    recent = columns("longest_prefix", [2, 2, 0], [1, 0, 0], recency=[1, 0, 2])
    assert (pick(recent), recent.tie) == ("A", "recency")
    loaded = columns("longest_prefix", [2, 2, 0], [1, 0, 0])
    assert (pick(loaded), loaded.tie) == ("B", "busy")
    rotation = Rotation(1)
    equal = columns("longest_prefix", [0, 2, 2], [0, 1, 1])
    assert (pick(equal, rotation), equal.tie, rotation.counter) == ("C", "rotation", 2)


@pytest.mark.parametrize("policy", ["affinity_load", "longest_prefix"])
def test_prefix_policies_without_a_match_are_least_busy_in_turn(policy: str) -> None:
    rotation = Rotation()
    picks = []
    for _ in range(4):
        decision = columns(policy, [0, 0, 0], [0, 7, 0])
        picks.append(pick(decision, rotation))
        assert decision.fallback == "no_match"
    assert picks == ["A", "C", "A", "C"]
