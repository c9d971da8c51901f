"""The depth of a body is what a reader that steps through it character by character would count."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.dialects.strict_json import InvalidJSON, members

TEXT = st.text(max_size=4) | st.sampled_from(["[[[", '"]"', "\\", '\\"', "}}", '{"\\\\'])
VALUE: Any = st.recursive(
    TEXT | st.integers(), lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=3)
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=100, deadline=None)
@given(VALUE, st.integers(1, 6), st.booleans())
def test_depth_is_that_of_the_value(value: object, most: int, escaped: bool) -> None:  # noqa: FBT001 - a parameter
    document = {"k": value, "many": [[]] * 80}  # more brackets than could be waved through
    body = json.dumps(document, ensure_ascii=escaped).encode()
    if depth(document) > most:
        with pytest.raises(InvalidJSON, match=f"nested deeper than {most} levels"):
            members(body, most)
    else:
        assert json.loads(bytes(members(body, most)["k"])) == value
