"""What is changed on the way and what is not (request-path §9), which model a request means (§6)."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.keyed import ONE, Engines, House, Routers, chat

# -- §9 ---------------------------------------------------------------------------------------------------------------


ODD = b'{ "zeta" :\t1.0e5,\r\n"model": "model-a" , "messages":[{"role":"user","content":"\\u00e9\xc3\xa9","x":{"a":1,"a":2}}],"big":123456789012345678901234567890, "beta":[null] }'


def test_agents_see_unmodified_bytes(house: House) -> None:
    """T99."""
    lines = (
        b"anthropic-beta: tools-2024-04-04",
        b"anthropic-version: 2023-06-01",
        b"Idempotency-Key: k",
        b"X-Unknown: \xe9\t1",
        b"User-Agent: codex/1",
    )
    assert house.ask(ONE, *lines, body=ODD).status == 200
    assert house.seen().body == ODD
    for line in lines:
        name, _, value = line.partition(b": ")
        assert house.seen().header(name.lower()) == value
    error = b'{"error": {"message" : "bad", "x":[ ]}}'
    house.engine.says(
        b"HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(error), error),
        house.engine.scripts[-1],
    )
    assert house.ask(ONE, body=ODD).body == error


def test_U1_only_the_model_is_spliced_when_the_endpoint_names_it_otherwise(house: House) -> None:
    house.ask(ONE, body=ODD.replace(b"model-a", b"model-b"))
    assert house.seen().body == ODD.replace(b"model-a", b"served/b")


def test_U1_an_alias_is_forwarded_as_the_model(house: House) -> None:
    house.ask(ONE, body=chat(model="nick"))
    assert house.seen().json["model"] == "model-a"


def test_U1_every_attempt_splices_from_the_original_bytes(router: Routers, script_engine: Engines, wire: Any) -> None:
    engines = [script_engine(wire.answer(b"{}", 503)) for _ in range(2)]
    names = ["a/much-longer-name-than-the-client-s", "b"]
    endpoints = [
        {"name": f"e{n}", "url": engine.url, "models": ["model-a"], "served_as": {"model-a": name}}
        for n, (engine, name) in enumerate(zip(engines, names, strict=True))
    ]
    router(endpoint=endpoints, retry={"attempts_per_model": 2}).ask(ODD)
    for engine, name in zip(engines, names, strict=True):
        assert [request.body for request in engine.requests] == [ODD.replace(b"model-a", name.encode())]


def test_C3_a_prompt_goes_to_the_endpoint_that_it_fits(router: Routers, script_engine: Engines, wire: Any) -> None:
    small, large = script_engine(), script_engine()
    endpoints = [
        {"name": "small", "url": small.url, "models": ["model-a"], "context_max": 50},
        {"name": "large", "url": large.url, "models": ["model-a"], "context_max": 500},
    ]
    up = router(endpoint=endpoints, scheduling={"policy": "round_robin"})
    for _ in range(4):
        answered = up.ask(wire.chat(messages=[{"role": "user", "content": "a" * 1000}]))
        assert answered.header(b"x-turnout-endpoint") == b"large"
    assert up.ask(wire.chat(messages=[{"role": "user", "content": "a" * 3000}])).json["error"]["max"] == 500


@pytest.mark.parametrize(
    "where",
    [
        b'{"turnout":{},"model":"model-a",%b}',
        b'{"model":"model-a","turnout":{} ,%b}',
        b'{"model":"model-a",%b,"turnout":{}}',
        b'{"model":"model-a",%b, "turnout" : null }',
    ],
)
def test_U1_turnout_is_removed(where: bytes, house: House) -> None:
    house.ask(ONE, body=where % b'"messages":[{"role":"user"}]')
    assert "turnout" not in house.seen().json
    assert house.seen().json["model"] == "model-a"


@pytest.mark.parametrize("member", [b'"\\u006dodel":"model-b"', b'"mod\\u0065l":"model-b"'])
def test_U1_an_escaped_model_key_is_spliced(member: bytes, house: House) -> None:
    house.ask(ONE, body=b"{" + member + b',"messages":[{"role":"user","content":"\\"model\\":\\"x\\""}]}')
    assert house.seen().json == {"model": "served/b", "messages": [{"role": "user", "content": '"model":"x"'}]}


REMOVED = [
    b"x-turnout-tenant: fake", b"x-turnout-key: fake", b"x-turnout-model: fake", b"x-turnout-decision: fake", b"x-turnout-endpoint: fake",
    b"x-prefiller-host-port: 1.2.3.4:5", b"x-encoder-hosts-ports: a", b"x-kv-cache-source-host-port: a", b"x-gateway-destination-endpoint: a",
    b"x-gateway-destination-endpoint-subset: a", b"x-data-parallel-rank: 1", b"x-smg-target-worker: a", b"routing-strategy: a",
    b"external-filter: a", b"epp-profile: a", b"Forwarded: for=1.2.3.4", b"X-Forwarded-For: 1.2.3.4", b"X-Forwarded-Host: a", b"X-Real-Ip: 1.2.3.4",
    b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"Proxy-Authorization: Basic x", b"Proxy-Authenticate: x", b"Proxy-Anything: x", b"TE: trailers",
    b"Trailer: x", b"Upgrade: h2c", b"Expect: 100-continue", b"Cookie: a=b", b"X-Goog-Api-Key: secret-of-one", b"x-api-key: secret-of-one",
    b"x-session-id: s", b"x-claude-code-session-id: s", b"x-claude-code-agent-id: s", b"x-claude-code-parent-agent-id: s", b"session-id: s",
    b"x-turnout-session: s", b"x-turnout-priority: low", b"x-turnout-timeout-ms: 5000", b"x-turnout-stream-safety: fast",
]  # fmt: skip


@pytest.mark.parametrize("line", REMOVED)
def test_request_headers_that_do_not_travel(line: bytes, house: House) -> None:
    assert house.ask(ONE, line).status == 200
    name = line.partition(b":")[0].lower()
    assert house.seen().header(name) is None


def test_request_headers_that_are_replaced(house: House) -> None:
    house.ask(ONE, b"Accept-Encoding: gzip", b"x-request-id: mine")
    seen = house.seen()
    assert seen.header(b"accept-encoding") == b"identity"
    assert seen.header(b"host") == house.engine.url.removeprefix("http://").encode()
    assert seen.header(b"x-request-id") == b"mine"
    assert [name for name, _ in seen.headers].count(b"host") == 1


CONTROLS = [
    b"x-turnout-timeout-ms: 0", b"x-turnout-timeout-ms: -1", b"x-turnout-timeout-ms: 1.5", b"x-turnout-timeout-ms: x", b"x-turnout-timeout-ms:",
    b"x-turnout-priority: urgent", b"x-turnout-stream-safety: very", b"x-turnout-fallback: maybe", b"x-turnout-hedge: yes", b"x-turnout-tiemout-ms: 5",
    b"x-turnout-: x", b"x-turnout-session:",
]  # fmt: skip


@pytest.mark.parametrize("line", CONTROLS)
def test_a_bad_or_mistyped_control_is_400_by_name(line: bytes, house: House) -> None:
    answered = house.ask(ONE, line)
    assert (answered.status, answered.code, answered.param) == (
        400,
        "invalid_request",
        line.partition(b":")[0].decode(),
    )


def test_the_same_request_id_reaches_the_engine_on_all_attempts(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    one, two = script_engine(), script_engine()
    one.scripts = two.scripts = [[wire.answer(b"{}", 503)], [wire.answer()]]
    answered = router(one, two).ask(None, b"x-request-id: mine")
    assert (answered.status, answered.header(b"x-request-id"), answered.header(b"x-turnout-attempts")) == (
        200,
        b"mine",
        b"2",
    )
    assert [r.header(b"x-request-id") for r in one.requests + two.requests] == [b"mine", b"mine"]
    assert len(answered.header(b"x-turnout-decision") or b"") == 26


# -- §1, errors by path ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"/v1/messages", b"/v1/messages/count_tokens", b"/v1/messages/x"])
def test_errors_on_anthropic_paths_are_in_its_envelope(path: bytes, house: House) -> None:
    answered = house.ask(path=path)
    assert answered.json["type"] == "error"
    assert answered.json["error"].keys() == {"type", "message"}
    assert answered.header(b"request-id") == answered.header(b"x-request-id") == answered.json["request_id"].encode()


@pytest.mark.parametrize("path", [b"/v1beta/models/x:generateContent", b"/v1beta/"])
def test_errors_on_gemini_paths_are_in_its_envelope(path: bytes, house: House) -> None:
    answered = house.ask(path=path)
    assert answered.json["error"].keys() == {"code", "message", "status"}
    assert answered.json["error"]["code"] == answered.status


@pytest.mark.parametrize(
    "path",
    [
        b"/V1/models",
        b"/v1/models/",
        b"/v1//models",
        b"/v1/./models",
        b"/v1/../v1/models",
        b"/v1/%6dodels",
        b"/v1/models;a",
        b"//v1/models",
        b"/v1/chat/completions/",
        b"/v1/Chat/completions",
        b"/metrics",
        b"/x/decisions/1",
        b"/v1beta",
        b"/v2/models",
    ],
)
def test_raw_path_decides(path: bytes, house: House) -> None:
    """T104."""
    seen = len(house.engine.requests)
    assert house.ask(ONE, path=path, method=b"GET").status == 404
    assert house.ask(path=path, method=b"GET").status == (401 if path.startswith(b"/v1/models/") else 404)
    assert house.ask(path=path).status == (405 if path.startswith(b"/v1/models/") else 404)
    assert len(house.engine.requests) == seen


def test_T104_the_host_header_changes_nothing(house: House) -> None:
    client = house.router.client()
    client.send(
        b"GET /v1/models HTTP/1.1\r\nHost: admin.internal\r\nX-Forwarded-Host: localhost\r\nX-Original-URL: /health\r\n\r\n"
    )
    assert client.response().status == 401


def test_the_query_is_ignored(house: House) -> None:
    assert house.ask(ONE, path=b"/v1/chat/completions?beta=true&key=x").status == 200
    assert house.seen().line == b"POST /v1/chat/completions HTTP/1.1"


@pytest.mark.parametrize("path", [b"/", b"/health", b"/ready"])
def test_public_paths_need_no_key_and_say_nothing(path: bytes, house: House) -> None:
    answered = house.ask(path=path, method=b"GET")
    assert answered.status == 200
    for word in (b"127.0.0.1", b"e1", b"secret", b"model-a"):
        assert word not in answered.body


# -- §6, §7, §8 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", ["model-A", " model-a", "model-a ", "model", "model-a-x", "openai/model-a", "Nick", "auto", "auto:fast"]
)
def test_M4_anything_but_an_exact_id_or_alias_is_404(model: str, house: House) -> None:
    seen = len(house.engine.requests)
    answered = house.ask(ONE, body=chat(model=model))
    assert (answered.status, answered.code) == (404, "model_not_found")
    assert len(house.engine.requests) == seen


def test_M5_no_model_is_400_without_a_default(house: House) -> None:
    answered = house.ask(ONE, body={"messages": [{"role": "user"}]})
    assert (answered.status, answered.code, answered.param) == (400, "missing_model_field", "model")


def test_M5_the_default_is_spliced_in(router: Routers, script_engine: Engines) -> None:
    up = router(engine := script_engine(), models={"default": "model-a"})
    for body in (
        b'{"messages":[{"role":"user"}]}',
        b'{"model":null,"messages":[{"role":"user"}]}',
        b'{"model":"","messages":[{"role":"user"}]}',
    ):
        assert up.ask(body).status == 200
        assert engine.requests[-1].json["model"] == "model-a"


def test_M6_a_known_model_without_an_endpoint_is_no_404(router: Routers, script_engine: Engines) -> None:
    up = router(script_engine(), model=[{"id": "lonely"}])
    answered = up.ask(chat(model="lonely"))
    assert (answered.status, answered.code) == (503, "no_endpoint")
    assert int(answered.header(b"retry-after") or 0) >= 1


def long(characters: int) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "a" * characters}]}


def test_C1_equal_passes_and_one_above_is_refused(house: House) -> None:
    assert house.ask(ONE, body=long(392)).status == 200  # (392 + 8) / 4 = 100
    seen = len(house.engine.requests)
    answered = house.ask(ONE, body=long(396))
    assert (answered.status, answered.code, answered.param) == (400, "context_length_exceeded", None)
    assert (answered.json["error"]["max"], answered.json["error"]["estimated_prompt_tokens"]) == (100, 101)
    message = answered.json["error"]["message"]
    assert (
        message
        == "This request needs at least 101 tokens, but the maximum context length of tiny is 100 tokens. Please reduce the length of the messages."
    )
    assert len(house.engine.requests) == seen


def test_precheck_runs_first_everywhere(house: House) -> None:
    """T24."""
    seen = len(house.engine.requests)
    bodies = {
        b"/v1/chat/completions": {**long(2000), "stream": True},
        b"/v1/completions": {"model": "tiny", "prompt": "a" * 2000},
        b"/v1/embeddings": {"model": "tiny", "input": "a" * 2000},
    }
    for path, body in bodies.items():
        assert house.ask(ONE, path=path, body=body).code == "context_length_exceeded"
    tokens = {"model": "tiny", "prompt": [[1], [1] * 101]}
    assert house.ask(ONE, path=b"/v1/completions", body=tokens).code == "context_length_exceeded"
    assert house.ask(ONE, path=b"/v1/completions", body={"model": "tiny", "prompt": [1] * 100}).status == 200
    assert len(house.engine.requests) == seen + 1


AGENTS = [
    (b"litellm/1.2", b"max_input_tokens=100"), (b"Agent-Zero", b"100"), (b"Agent Zero 2", b"100"), (b"Zed/0.1", b"max_tokens"), (b"claude-cli/2", b"/compact"),
    (b"claude-code", b"/compact"), (b"codex_cli_rs/0.1", b"model_context_window=100"), (b"opencode/1", b"limit.context"),
]  # fmt: skip


@pytest.mark.parametrize(("agent", "words"), AGENTS)
def test_advice_goes_to_known_agents_only_with_the_refusal(agent: bytes, words: bytes, house: House) -> None:
    answered = house.ask(ONE, b"User-Agent: " + agent, body=long(2000))
    text = answered.header(b"x-turnout-advice") or b""
    assert words in text
    assert len(text) <= 200
    assert text.isascii()
    assert text not in answered.body
    assert house.ask(ONE, b"User-Agent: " + agent).header(b"x-turnout-advice") is None


def test_other_agents_get_no_advice(house: House) -> None:
    assert house.ask(ONE, b"User-Agent: curl/8", body=long(2000)).header(b"x-turnout-advice") is None
