import pytest

from turnout.core.admission.precheck import context_exceeded, estimate_floor, units


@pytest.mark.parametrize(
    ("text", "messages", "expected"),
    [("a" * 400, 1, 102), ("你" * 400, 1, 202), ("abc", 0, 1), ("abcd", 1, 3), ("a" * 142_168, 1, 35_544)],
)
def test_published_estimates(text: str, messages: int, expected: int) -> None:
    assert estimate_floor(units(text), messages, 0) == expected


@pytest.mark.parametrize(
    ("character", "expected"),
    [
        ("a", 1),
        ("é", 1),
        ("😀", 1),
        ("\u2e7f", 1),
        ("\u2e80", 2),
        ("\u9fff", 2),
        ("\ua000", 1),
        ("\uabff", 1),
        ("\uac00", 2),
        ("\ud7a3", 2),
        ("\uf900", 2),
        ("\ufaff", 2),
        ("\ufb00", 1),
        ("\U00020000", 2),
        ("\U0003ffff", 2),
        ("\U00040000", 1),
        ("\ud800", 1),
    ],
)
def test_units_count_characters_and_wide_ones_twice(character: str, expected: int) -> None:
    assert units(character) == expected
    assert units(character * 3 + "x") == 3 * expected + 1


def test_estimate_is_at_least_one_and_counts_tools_as_a_quarter_of_their_bytes() -> None:
    assert estimate_floor(0, 0, 0) == 1
    assert estimate_floor(0, 0, 164) == 10


def test_divisor_may_be_configured() -> None:
    assert estimate_floor(400, 0, 0, chars_per_token=2.0) == 200


def test_context_is_exceeded_only_above_every_known_one() -> None:
    assert context_exceeded(101, [50, 100]) == 100
    assert context_exceeded(100, [50, 100]) is None


def test_one_unknown_context_lets_it_pass() -> None:
    assert context_exceeded(10**9, [100, None]) is None


def test_no_endpoint_says_nothing_about_length() -> None:
    assert context_exceeded(10**9, []) is None
