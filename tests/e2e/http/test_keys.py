"""Whose request it is (request-path §5): carriers of keys, what a key may, and what no client may know."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.keyed import KEYS, ONE, Engines, House, Routers, chat, key


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization: Bearer secret-of-one",
        b"authorization: bearer secret-of-one",
        b"Authorization: BEARER  secret-of-one",
        b"x-api-key: secret-of-one",
        b"X-API-Key: secret-later",
    ],
)
def test_K1_carriers_of_a_key(line: bytes, house: House) -> None:
    assert house.ask(line).status == 200


NO_KEY: list[tuple[bytes, ...]] = [
    (), (b"Authorization: Basic c2VjcmV0",), (b"Authorization: secret-of-one",), (b"Authorization: Bearer",), (b"Authorization: Bearer ",), (b"Authorization:",), (b"x-api-key:",),
    (b"Authorization: Bearer unknown",), (b"Authorization: Bearer " + b"x" * 300,), (b"Authorization: Bearer secr\xe9t",), (b"x-api-key: \xff",), (b"x-goog-api-key: secret-of-one",),
    (b"Authorization: Bearer secret-of-one, Bearer secret-of-one",), (b"Cookie: key=secret-of-one",),
]  # fmt: skip


@pytest.mark.parametrize("lines", NO_KEY)
def test_K5_everything_but_a_known_key_gets_one_body(lines: tuple[bytes, ...], house: House) -> None:
    answered = house.ask(*lines)
    assert (answered.status, answered.code, answered.json["error"]["type"]) == (
        401,
        "invalid_api_key",
        "authentication_error",
    )
    assert answered.header(b"www-authenticate") == b"Bearer"
    assert answered.body == house.ask().body


def test_K1_a_key_in_the_query_is_no_key(house: House) -> None:
    assert house.ask(path=b"/v1/chat/completions?key=secret-of-one&api_key=secret-of-one").status == 401


@pytest.mark.parametrize(
    ("bearer", "api_key", "status"),
    [
        ("secret-of-one", "secret-of-one", 200),
        ("secret-of-one", "secret-of-one-too", 200),
        ("secret-of-one", "secret-of-two", 401),
        ("secret-of-one", "unknown", 200),
        ("unknown", "secret-of-two", 200),
        ("unknown", "other", 401),
    ],
)
def test_K2_two_carriers(bearer: str, api_key: str, status: int, house: House) -> None:
    assert house.ask(b"Authorization: Bearer " + bearer.encode(), b"x-api-key: " + api_key.encode()).status == status


@pytest.mark.parametrize(
    ("secret", "code"),
    [("secret-revoked", "key_revoked"), ("secret-inactive", "key_inactive"), ("secret-expired", "key_expired")],
)
def test_K6_a_proven_key_that_may_not_is_403(secret: str, code: str, house: House) -> None:
    answered = house.ask(b"Authorization: Bearer " + secret.encode())
    assert (answered.status, answered.code, answered.json["error"]["type"]) == (403, code, "permission_error")


@pytest.mark.parametrize(
    ("model", "status"), [("model-b", 200), ("x/one", 200), ("model-a", 403), ("nick", 403), ("nowhere", 404)]
)
def test_K7_model_lists_match_the_concrete_id(model: str, status: int, house: House) -> None:
    answered = house.ask(b"x-api-key: secret-limited", body=chat(model=model))
    assert answered.status == status
    if status == 403:
        assert answered.code == "model_not_allowed"


def test_K7_the_catalogue_shows_only_what_the_key_may_use(house: House) -> None:
    listed = house.ask(b"x-api-key: secret-limited", path=b"/v1/models", method=b"GET").json["data"]
    assert [model["id"] for model in listed] == ["model-b", "x/one"]
    assert house.ask(b"x-api-key: secret-limited", path=b"/v1/models/x/one", method=b"GET").json["id"] == "x/one"
    assert house.ask(b"x-api-key: secret-limited", path=b"/v1/models/model-a", method=b"GET").status == 404


def test_K9_open_mode_has_an_anonymous_principal_and_still_knows_the_revoked(
    router: Routers, script_engine: Engines
) -> None:
    up = router(script_engine(), auth={"mode": "open"}, key=KEYS)
    assert up.ask(key="unknown").status == 200
    assert up.ask(key="secret-of-one").status == 200
    assert up.ask(key="secret-revoked").status == 403
    assert [fact.tenant for fact in up.records.facts] == ["anonymous", "t1"]


def test_K10_no_client_credential_reaches_an_endpoint(house: House) -> None:
    house.ask(
        ONE,
        b"x-api-key: secret-of-one",
        b"x-goog-api-key: secret-of-one",
        b"Cookie: secret-of-one",
        b"Proxy-Authorization: secret-of-one",
    )
    assert b"secret" not in house.seen().raw_head
    assert house.seen().header(b"authorization") == b"Bearer our-own-credential"


@pytest.mark.parametrize(
    "secret",
    [
        b"' OR 1=1 --",
        b"secret-of-on",
        b"secret-of-one'",
        b"secret-of-one x",
        b"%",
        b"*",
        b"secret-of-one\t;DROP TABLE keys",
    ],
)
def test_hostile_keys_touch_no_sql_and_no_prefix_cache(secret: bytes, house: House) -> None:
    """T105."""
    answered = house.ask(b"x-api-key: " + secret)
    assert answered.status == 401
    assert answered.body == house.ask().body
    assert house.ask(ONE).status == 200


@pytest.mark.parametrize(
    "lines",
    [
        (b"x-turnout-endpoint: http://evil",),
        (b"x-gateway-destination-endpoint: evil:80",),
        (b"x-forwarded-host: evil",),
        (b"x-upstream-url: http://evil",),
    ],
)
@pytest.mark.parametrize("members", [{}, {"api_base": "http://evil", "base_url": "http://evil", "api_key": "evil"}])
def test_client_cannot_name_an_upstream(lines: tuple[bytes, ...], members: dict[str, str], house: House) -> None:
    """T106."""
    assert house.ask(ONE, *lines, body=chat(**members)).status == 200
    assert house.seen().header(b"host") == house.engine.url.removeprefix("http://").encode()
    assert house.seen().line == b"POST /v1/chat/completions HTTP/1.1"
    assert house.seen().header(b"authorization") == b"Bearer our-own-credential"


def test_authorised_is_what_runs(house: House) -> None:
    """T94."""
    seen = len(house.engine.requests)
    limited = b"x-api-key: secret-limited"
    for body in (
        b'{"model":"model-b","messages":[{"role":"user"}],"model":"model-a"}',
        b'{"model":"model-b","messages":[{"role":"user"}],"\\u006dodel":"model-a"}',
        b'{"model":"model-b","messages":[{"role":"user"}],"mode\\u006c":"model-a"}',
        b'{"m\\u006fdel":"model-a","messages":[{"role":"user"}],"model":"model-b"}',
    ):
        assert house.ask(limited, body=body).status == 400
    assert len(house.engine.requests) == seen


def test_secrets_appear_nowhere(
    router: Routers, script_engine: Engines, wire: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """T107."""
    canaries = ["canary-key", "canary-prompt", "canary-credential", "canary-query"]
    engine = script_engine(
        [wire.answer(b'{"error":"canary-credential"}', 401)], [wire.Cut(reset=True)], [wire.answer()]
    )
    endpoint = [{"name": "e1", "url": engine.url, "models": ["model-a"], "api_key": "canary-credential"}]
    up = router(
        endpoint=endpoint,
        key=[key("k", "canary-key", "t")],
        log={"level": "debug", "format": "json"},
        server={"admin_listen": "127.0.0.1:0"},
    )
    prompt = {"model": "model-a", "messages": [{"role": "user", "content": "canary-prompt"}]}
    said = [
        up.ask({**prompt, "max_tokens": "x"}, key="canary-key"),
        up.ask({**prompt, "model": "nowhere"}, key="canary-key"),
        up.ask(b'{"model":"model-a","messages":"canary-prompt"', key="canary-key"),
        up.ask(prompt, key="canary-key"),
        up.ask(prompt, key="canary-key"),
        up.ask(prompt, key="canary-key"),
        up.ask(prompt, path=b"/v1/chat/completions?key=canary-query", key="canary-keys"),
        up.ask(method=b"GET", path=b"/health"),
    ]
    metrics = up.ask(method=b"GET", path=b"/metrics", port=up.admin_port)
    assert metrics.status == 200
    up.stop()
    shown = b"".join(answer.head + answer.body for answer in [*said, metrics]) + repr(up.records.facts).encode()
    logged = capfd.readouterr()
    for canary in canaries:
        assert canary.encode() not in shown
        assert canary not in logged.err + logged.out
