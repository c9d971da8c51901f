"""The guard's golden pairs and what counts as number, negation, name (response-cache §3)."""

from __future__ import annotations

import pytest

from turnout.core.response_cache.guard import Kind, differs, features


@pytest.mark.parametrize(
    ("asked", "stored", "standard", "strict"),
    [
        ("Is 5 prime?", "Is 7 prime?", Kind.NUMBERS, Kind.NUMBERS),
        ("How do I enable TLS?", "How do I not enable TLS?", Kind.NEGATIONS, Kind.NEGATIONS),
        ("the capital of France", "the capital of Spain", Kind.ENTITIES, Kind.ENTITIES),
        ("please summarise this text", "Please, summarise this text!", None, None),
        ("sort the list upwards", "sort the list downwards", None, Kind.WORDS),
        ("add two apples", "add three apples", Kind.NUMBERS, Kind.NUMBERS),
        ("at 10:30 on 1/2/2024", "at 10:31 on 1/2/2024", Kind.NUMBERS, Kind.NUMBERS),
        ("5 and 5", "5", Kind.NUMBERS, Kind.NUMBERS),
        ("I can", "I can't", Kind.NEGATIONS, Kind.NEGATIONS),
        ("I can", "I can\u2019t", Kind.NEGATIONS, Kind.NEGATIONS),
        ("open foo_bar", "open foo_baz", Kind.ENTITIES, Kind.ENTITIES),
        ("see a/b.py", "see a/c.py", Kind.ENTITIES, Kind.ENTITIES),
        ("what is 'alpha'", "what is 'beta'", Kind.ENTITIES, Kind.ENTITIES),
        ("what is `x y`", "what is `x z`", Kind.ENTITIES, Kind.ENTITIES),
        ("use gpt4 here", "use gpt5 here", Kind.NUMBERS, Kind.NUMBERS),
        ("run fooBar", "run fooBaz", Kind.ENTITIES, Kind.ENTITIES),
        ("Go on. Stop it", "go on. stop it", None, None),
        ("\uff15 apples", "5 apples", None, None),
        ("", "", None, None),
    ],
)
def test_pairs(asked: str, stored: str, standard: Kind | None, strict: Kind | None) -> None:
    for left, right in ((asked, stored), (stored, asked)):
        assert differs(features(left), features(right), strict=False) is standard
        assert differs(features(left), features(right), strict=True) is strict


def test_no_text_can_imitate_the_border_between_two_others() -> None:
    assert features('"a" "b"').entities != features('"a1:b"').entities
