from turnout.core.fleet.ranks import Ranks


def test_the_deepest_rank_is_picked_and_of_equals_the_less_busy() -> None:
    ranks = Ranks(3)
    ranks.opened(0, 0)
    assert ranks.pick([4.0, 9.0, 0.0], 0) == 1
    assert ranks.pick([9.0, 9.0, 0.0], 0) == 1


def test_prompts_that_begin_alike_follow_each_other_within_the_bound() -> None:
    ranks = Ranks(4)
    ranks.opened(2, 77)
    ranks.ended(2)
    assert ranks.pick([0.0] * 4, 77) == 2
    assert ranks.pick([0.0] * 4, 78) == 0
    for _ in range(2):
        ranks.opened(2, 77)
    assert ranks.pick([0.0] * 4, 77) == 0


def test_without_anything_known_the_least_busy_rank_is_picked() -> None:
    ranks = Ranks(2)
    ranks.opened(ranks.pick([], 0), 0)
    assert ranks.pick([], 0) == 1
    ranks.ended(0)
    assert ranks.in_flight == [0, 0]
