"""Joining a second answer to a broken one (resilience R4, R5)."""

from __future__ import annotations

import pytest

from turnout.core.recovery.prefix_match import PrefixMatch, Progress, Span, merged


def said(match: PrefixMatch, *spans: Span) -> list[str]:
    return [f"{step.progress.value} {step.text}".rstrip() for step in (match.feed(*span) for span in spans)]


def content(*texts: str) -> list[Span]:
    return [("content", text) for text in texts]


@pytest.mark.parametrize(
    ("sent", "again", "expected"),
    [
        (["ab", "cd"], ["ab", "cd", "ef"], ["suppress", "suppress", "relay ef"]),
        (["ab", "cd"], ["abcdef"], ["relay ef"]),
        (["abcd"], ["a", "bcde"], ["suppress", "relay e"]),
        (["abcd"], ["abXd"], ["mismatch"]),
        (["abcd"], ["abcX", "e"], ["mismatch", "mismatch"]),
        ([], ["ab"], ["relay ab"]),
        (["ab"], ["", "ab", ""], ["suppress", "suppress", "suppress"]),
        (["äöü€"], ["äö", "ü€", "😀"], ["suppress", "suppress", "relay 😀"]),
    ],
)
def test_what_was_sent_is_not_sent_again(sent: list[str], again: list[str], expected: list[str]) -> None:
    assert said(PrefixMatch(content(*sent)), *content(*again)) == expected


def test_channels_are_kept_apart() -> None:
    sent = [("reasoning", "hm"), ("content", "yes")]
    assert said(PrefixMatch(sent), ("reasoning", "h"), ("reasoning", "m"), ("content", "yes"), ("content", "!")) == [
        "suppress",
        "suppress",
        "suppress",
        "relay !",
    ]
    assert said(PrefixMatch(sent), ("content", "hm")) == ["mismatch"]
    assert said(PrefixMatch(sent), ("reasoning", "hmm")) == ["mismatch"]
    assert said(PrefixMatch([("reasoning", "h")]), ("reasoning", "hm"), ("content", "yes")) == ["relay m", "relay yes"]


def test_an_end_before_catching_up_is_a_difference() -> None:
    match = PrefixMatch(content("abc"))
    match.feed("content", "ab")
    assert match.ended() is Progress.MISMATCH
    assert match.failed


def test_an_end_exactly_where_the_first_broke_is_the_end() -> None:
    match = PrefixMatch(content("abc"))
    match.feed("content", "abc")
    assert (match.caught_up, match.ended(), match.suppressed) == (True, Progress.RELAY, 3)


def test_how_a_text_was_cut_into_events_does_not_matter() -> None:
    assert merged([("c", "a"), ("c", ""), ("c", "b"), ("r", "x"), ("c", "d")]) == [("c", "ab"), ("r", "x"), ("c", "d")]
