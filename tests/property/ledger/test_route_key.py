"""Encoding route keys loses nothing and confuses nothing."""

from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.core.facts import RouteKey
from turnout.ledger import route_key

part = st.text(st.sampled_from("a%|7C\x00\n\x7f é"), max_size=6) | st.text(max_size=6)
keys = st.builds(RouteKey, part, part, part)


@settings(max_examples=100, deadline=None)
@given(keys)
def test_every_key_survives_its_encoding(key: RouteKey) -> None:
    text = route_key.encode_key(key)
    assert route_key.decode(text) == key
    assert text.isprintable() or not any(ord(c) < 0x20 or ord(c) == 0x7F for c in text)


@settings(max_examples=100, deadline=None)
@given(keys, keys)
def test_different_keys_have_different_encodings(a: RouteKey, b: RouteKey) -> None:
    assert (route_key.encode_key(a) == route_key.encode_key(b)) == (a == b)
