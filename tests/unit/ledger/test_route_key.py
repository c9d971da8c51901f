"""One text form per route key (T32)."""

import pytest

from turnout.core.facts import RouteKey
from turnout.ledger import route_key


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("p", "m", None), "p|m|"),
        (("a|b", "m%", None), "a%7Cb|m%25|"),
        ((None, None, None), "||"),
        (("", "", ""), "||"),
        (("P ", " é", "None"), "P | é|None"),
        (("a\nb\x7f", "\x00", "%41"), "a%0Ab%7F|%00|%2541"),
    ],
)
def test_route_key_has_one_encoding(parts: tuple[str | None, ...], text: str) -> None:
    provider, model, replica = parts
    assert route_key.encode(provider, model, replica) == text
    assert route_key.decode(text) == RouteKey(provider or "", model or "", replica or "")


@pytest.mark.parametrize("text", ["", "a|b", "a|b|c|d", "%41||", "a%7c||", "%||", "a\n||"])
def test_text_that_no_key_encodes_to_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="route key"):
        route_key.decode(text)
