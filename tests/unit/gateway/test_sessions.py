"""The session of a request: which name wins, in the usual order and in one of one's own."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from turnout.core.request import Request
from turnout.core.scheduling_options import SessionKey
from turnout.dialects.openai import CHAT, decode
from turnout.gateway.prepare import Prepared
from turnout.gateway.sessions import session_of
from turnout.http.head import Head

NAMES: tuple[str, ...] = get_args(SessionKey)


def prepared(headers: dict[str, str]) -> Prepared:
    fields = {name.encode(): value.encode() for name, value in headers.items()}
    return Prepared(Head(b"POST", CHAT, 1, fields))


def request_of(members: dict[str, Any]) -> Request:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": '"user": "not me"'}], **members})
    decoded = decode(CHAT, body.encode(), 32)
    assert isinstance(decoded, Request)
    return decoded


def named(names: tuple[str, ...]) -> tuple[Prepared, Request]:
    """A request that names a session under each of these names, by that name."""
    headers: dict[str, str] = {}
    members: dict[str, Any] = {}
    for name in names:
        if "-" in name:
            headers[name] = name
        elif "." in name:
            outer, inner = name.split(".")
            members.setdefault(outer, {})[inner] = name
        else:
            members[name] = name
    return prepared(headers), request_of(members)


@pytest.mark.parametrize("first", range(len(NAMES)))
def test_the_first_name_of_the_table_wins(first: int) -> None:
    assert session_of(*named(NAMES[first:]), None) == NAMES[first]


@pytest.mark.parametrize("order", [["thread-id", "user"], ["user"], ["metadata.user_id", "x-turnout-session"]])
def test_an_order_of_ones_own_looks_nowhere_else(order: list[str]) -> None:
    assert session_of(*named(NAMES), order) == order[0]
    assert session_of(*named(tuple(name for name in NAMES if name not in order)), order) is None


def test_nothing_names_a_session() -> None:
    assert session_of(*named(()), None) is None
    assert session_of(*named(()), ["user", "thread-id"]) is None


def test_shapes_that_name_nothing_are_passed_over() -> None:
    request = request_of({"metadata": ["session_id"], "conversation": {"id": "c"}, "session_params": 1, "user": "u"})
    assert session_of(prepared({}), request, None) == "u"
    assert session_of(prepared({}), request, ["metadata.session_id", "conversation", "user"]) == "u"
