"""The situations of engines §5, one test each."""

from turnout.core.prefix.sequence import Kind, Sequencer, Step


def kinds(steps: list[Step[str]]) -> list[object]:
    """The steps as words: batches by their text, the rest by kind and number."""
    return [step.batch if step.kind is Kind.APPLY else (step.kind.value, step.number) for step in steps]


def started(*batches: str) -> Sequencer[str]:
    sequencer: Sequencer[str] = Sequencer()
    for seq, batch in enumerate(batches):
        sequencer.received(seq, hash(batch), batch)
    return sequencer


def test_first_message_zero_is_whole() -> None:
    assert kinds(Sequencer[str]().received(0, 1, "a")) == ["a", ("whole", 0)]


def test_next_number_is_applied() -> None:
    assert kinds(started("a").received(1, 1, "b")) == ["b"]


def test_late_join_asks_from_zero_and_is_whole_when_the_replay_reaches_it() -> None:
    sequencer: Sequencer[str] = Sequencer()
    assert kinds(sequencer.received(2, 1, "c")) == [("replay", 0)]
    assert kinds(sequencer.replayed([(0, 1, "a"), (1, 1, "b")])) == ["a", "b", "c", ("whole", 0)]


def test_late_join_whose_replay_starts_later_has_a_gap() -> None:
    sequencer: Sequencer[str] = Sequencer()
    sequencer.received(9, 1, "j")
    assert kinds(sequencer.replayed([(7, 1, "h"), (8, 1, "i")])) == [("gap", 7), "h", "i", "j"]
    assert sequencer.missing == 7


def test_hole_holds_live_batches_until_the_replay_is_complete() -> None:
    sequencer = started("a")
    assert kinds(sequencer.received(3, 1, "d")) == [("replay", 1)]
    assert kinds(sequencer.received(4, 1, "e")) == []
    assert kinds(sequencer.replayed([(1, 1, "b"), (2, 1, "c"), (3, 1, "d")])) == ["b", "c", "d", "e"]
    assert (sequencer.last, sequencer.missing) == (4, 0)


def test_hole_that_no_replay_closes_is_a_gap() -> None:
    sequencer = started("a")
    sequencer.received(3, 1, "d")
    assert kinds(sequencer.replayed([])) == [("gap", 2), "d"]
    assert sequencer.missing == 2


def test_duplicate_is_ignored() -> None:
    sequencer = started("a", "b")
    assert kinds(sequencer.received(0, hash("a"), "a")) == []
    assert sequencer.last == 1


def test_publisher_that_starts_again_is_restarted() -> None:
    sequencer = started("a", "b", "c")
    assert kinds(sequencer.received(0, 99, "x")) == [("restart", 0), "x", ("whole", 0)]
    assert sequencer.last == 0


def test_lower_number_that_is_no_duplicate_is_a_restart_with_doubt() -> None:
    sequencer = started("a", "b", "c")
    assert kinds(sequencer.received(1, 99, "y")) == [("restart", 0), ("replay", 0)]
    assert kinds(sequencer.replayed([])) == [("gap", 1), "y"]


def test_restart_ends_a_replay_under_way() -> None:
    sequencer = started("a", "b")
    sequencer.received(7, 1, "h")
    assert kinds(sequencer.received(0, 5, "x")) == [("restart", 0), "x", ("whole", 0)]
    assert kinds(sequencer.replayed([(2, 1, "c")])) == []


def test_what_is_held_is_bounded_and_the_rest_is_a_gap() -> None:
    sequencer: Sequencer[str] = Sequencer(held_max=2)
    sequencer.received(0, 1, "a")
    for seq in range(2, 7):
        sequencer.received(seq, 1, str(seq))
    assert sequencer.overflowed == 3
    assert kinds(sequencer.replayed([(1, 1, "b")])) == ["b", "2", "3"]
    assert kinds(sequencer.received(7, 1, "7")) == [("replay", 4)]


def test_lost_connection_forgets_what_was_under_way() -> None:
    sequencer = started("a")
    sequencer.received(5, 1, "f")
    sequencer.lost()
    assert kinds(sequencer.received(6, 1, "g")) == [("replay", 1)]
