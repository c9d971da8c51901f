"""What clients read of their own use, on a router with its ledger: nothing of others, and nobody waits for it."""

from __future__ import annotations

import hashlib
import http.client
import json
from typing import Any

import pytest

KEYS = {"tenant-one": "tt-key-of-tenant-one", "tenant-two": "tt-key-of-tenant-two"}


def digest(tenant: str) -> str:
    return "sha256:" + hashlib.sha256(KEYS[tenant].encode()).hexdigest()


class Asking:
    def __init__(self, router: Any) -> None:
        self.router = router

    def __call__(self, tenant: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.router.port, timeout=30)
        named = {"authorization": f"Bearer {KEYS[tenant]}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        content = None if body is None else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, content, named)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        connection.close()
        return answer.status, found

    def chat(self, tenant: str, session: str, **members: object) -> tuple[int, Any]:
        body = {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, **members}
        return self(tenant, "/v1/chat/completions", body, x_turnout_session=session)


def open_for_questions(ask: Asking, processes: Any) -> Asking:
    """Until the database is open, nothing can be read from it, and the router says so."""
    assert processes.eventually(lambda: ask("tenant-one", "/v1/usage")[0] != 503)
    return ask


@pytest.fixture
def ask(processes: Any) -> Asking:
    second = {"name": "two", "tenant": "tenant-two", "digest": digest("tenant-two"), "permissions": ["usage_tenant"]}
    router = processes.serve(
        processes.engines(1), key=digest("tenant-one"), **{"auth": {"mode": "keys"}, "[key]": second}
    )
    return open_for_questions(Asking(router), processes)


def test_session_and_usage_are_the_callers_own(processes: Any, ask: Asking) -> None:
    for _ in range(3):
        assert ask.chat("tenant-one", "shared name")[0] == 200
    assert ask.chat("tenant-two", "shared name")[0] == 200
    assert ask.chat("tenant-two", "of two only")[0] == 200
    assert processes.eventually(lambda: len(ask.router.rows("SELECT seq FROM calls")) == 5)

    status, mine = ask("tenant-one", "/v1/session/shared%20name")
    assert (status, mine["calls"], mine["failed"], mine["in_flight"]) == (200, 3, 0, 0)
    assert mine["session_id"] == "shared name"
    assert mine["tokens_out"] == 12
    assert ask("tenant-two", "/v1/session/shared%20name")[1]["calls"] == 1

    foreign, unknown = (ask("tenant-one", f"/v1/session/{name}") for name in ("of%20two%20only", "nobodys"))
    assert foreign[0] == unknown[0] == 404
    assert foreign[1]["error"]["code"] == "session_not_found"
    assert {**foreign[1]["error"], "request_id": ""} == {**unknown[1]["error"], "request_id": ""}

    status, usage = ask("tenant-one", "/v1/usage?window=1h&limit=2")
    assert (status, usage["totals"]["calls"], len(usage["recent"])) == (200, 3, 2)
    assert usage["cursor"]
    status, rest = ask("tenant-one", f"/v1/usage?window=1h&limit=2&cursor={usage['cursor']}")
    assert (status, len(rest["recent"])) == (200, 1)
    assert {row["call_id"] for row in usage["recent"]}.isdisjoint({row["call_id"] for row in rest["recent"]})
    assert ask("tenant-two", "/v1/usage")[1]["totals"]["calls"] == 2


def test_calls_in_flight_are_part_of_the_session(processes: Any, ask: Asking) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", ask.router.port, timeout=30)
    body = {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100_000, "stream": True}
    named = {"authorization": f"Bearer {KEYS['tenant-one']}", "x-turnout-session": "long"}
    connection.request("POST", "/v1/chat/completions", json.dumps({**body, "ignore_eos": True}).encode(), named)
    answer = connection.getresponse()
    assert answer.status == 200
    status, open_one = ask("tenant-one", "/v1/session/long")
    assert (status, open_one["calls"], open_one["in_flight"]) == (200, 0, 1)
    assert ask("tenant-two", "/v1/session/long")[0] == 404
    answer.close()
    connection.close()
    assert processes.eventually(lambda: ask("tenant-one", "/v1/session/long")[1].get("failed") == 1)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("window=5x", "window"),
        ("window=9999w", "window"),
        ("window=1h&since_ms=1", "window"),
        ("since_ms=-1", "since_ms"),
        ("until_ms=1e3", "until_ms"),
        ("limit=501", "limit"),
        ("limit=0", "limit"),
        ("cursor=nonsense", "cursor"),
        ("tenant=tenant-two", "tenant"),
    ],
)
def test_wrong_parameters_are_named(shared_ask: Asking, query: str, param: str) -> None:
    status, found = shared_ask("tenant-one", f"/v1/usage?{query}")
    assert (status, found["error"]["code"], found["error"]["param"]) == (400, "invalid_request", param)


@pytest.fixture(scope="module")
def shared_ask(shared_processes: Any) -> Asking:
    ask = Asking(shared_processes.serve(shared_processes.engines(1), key=digest("tenant-one")))
    return open_for_questions(ask, shared_processes)


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/session/x"])
def test_only_known_keys_and_get(shared_ask: Asking, path: str) -> None:
    assert shared_ask("tenant-two", path)[0] == 401
    assert shared_ask("tenant-one", path, {})[0] == 405
