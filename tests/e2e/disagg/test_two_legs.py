"""Both flows end to end on real sockets: who serves, what the client gets, and that nothing is left behind."""

from __future__ import annotations

import json
from typing import Any

import pytest

PROMPTS = [
    f"question number {number}: " + "tell me more about trains and points " * (3 + number % 7) for number in range(8)
]


def body(wire: Any, number: int = 0, **members: Any) -> dict[str, object]:
    messages = [{"role": "user", "content": PROMPTS[number % len(PROMPTS)] + str(number)}]
    chat: dict[str, object] = wire.chat(messages=messages, max_tokens=24, **members)
    return chat


def text_of(answer: bytes, *, stream: bool) -> str:
    if not stream:
        content: str = json.loads(answer)["choices"][0]["message"]["content"]
        return content
    pieces = []
    for line in answer.split(b"\n"):
        if line.startswith(b"data: {"):
            pieces += [choice["delta"].get("content", "") for choice in json.loads(line[6:])["choices"]]
    assert answer.rstrip().endswith(b"[DONE]")
    return "".join(pieces)


@pytest.mark.parametrize("stream", [False, True])
def test_text_is_that_of_one_endpoint_and_both_legs_serve(
    start_router: Any, fleet_of: Any, flow: str, wire: Any, eventually: Any, *, stream: bool
) -> None:
    fleet = fleet_of(flow)
    alone = fleet_of("nixl", {"whole": "both"})
    split = start_router(endpoint=fleet.tables, disagg={"decider": "always"})
    whole = start_router(endpoint=alone.tables)
    variants: list[dict[str, Any]] = [{}, {"stop": ["e"]}, {"max_tokens": None}, {"max_tokens": 3}]
    for number, extra in enumerate(variants * 2):
        asked = body(wire, number, stream=stream)
        asked |= extra
        ours, theirs = split.ask(asked), whole.ask(asked)
        assert ours.status == theirs.status == 200, ours.body
        assert text_of(ours.body, stream=stream) == text_of(theirs.body, stream=stream)
        assert ours.header(b"x-turnout-endpoint") in (b"d0", b"d1")
    assert all(fleet.served().values())
    assert eventually(fleet.idle), fleet.states()
    assert split.eventually(lambda: _rest(split) == 0)


def _rest(router: Any) -> int:
    fleet = router.app.gateway.fleet
    open_ones = sum(e.in_flight + e.pending_prefill_tokens + e.active_tokens for e in fleet.endpoints.values())
    return int(open_ones) + len(fleet.pairing.rooms)


def ask_many(router: Any, wire: Any, count: int, at_once: int = 1) -> None:
    """Ask so many different things, some of them at once."""
    for first in range(0, count, at_once):
        clients = [router.client() for _ in range(min(at_once, count - first))]
        for place, client in enumerate(clients):
            client.send(router.request(body(wire, first + place)))
        assert all(client.response().status == 200 for client in clients)
        for client in clients:
            client.close()


def shares(served: dict[str, int]) -> dict[str, float]:
    """Each endpoint's share of all legs; every request has one of each role."""
    assert served["p0"] + served["p1"] == served["d0"] + served["d1"]
    return {name: count / sum(served.values()) for name, count in served.items()}


@pytest.fixture
def many(place: str) -> int:
    """How many requests show how they spread."""
    return 120 if place == "virtual" else 60


def test_round_robin_serves_each_end_alike(
    start_router: Any, fleet_of: Any, flow: str, wire: Any, many: int, place: str
) -> None:
    fleet = fleet_of(flow)
    policy = {"decider": "always", "prefill_policy": "round_robin", "decode_policy": "round_robin"}
    router = start_router(endpoint=fleet.tables, disagg=policy)
    count = 400 if place == "virtual" else many
    ask_many(router, wire, count)
    assert set(fleet.served().values()) == {count // 2}
    assert set(shares(fleet.served()).values()) == {0.25}


@pytest.mark.parametrize(("rule", "within"), [("least_busy", 0.1), ("random", None), ("power_of_two", None)])
def test_other_rules_spread_as_they_should(
    start_router: Any, fleet_of: Any, flow: str, wire: Any, many: int, place: str, rule: str, within: float | None
) -> None:
    fleet = fleet_of(flow)
    policy = {"decider": "always", "prefill_policy": rule, "decode_policy": rule}
    router = start_router(endpoint=fleet.tables, disagg=policy, scheduling={"seed": 3})
    ask_many(router, wire, many, at_once=8)
    served = fleet.served()
    most = many / 2 * within if within is not None else 4 * (many * 0.25) ** 0.5  # 4 sigma of a fair coin
    if place == "virtual" or within is None:  # on sockets what is busy is a matter of milliseconds
        assert all(abs(count - many / 2) <= most for count in served.values()), served
    assert all(0.15 <= share <= 0.35 for share in shares(served).values())


def test_the_default_spreads_over_all_four(start_router: Any, fleet_of: Any, flow: str, wire: Any, many: int) -> None:
    """No endpoint has under 15 % or over 35 % of the legs: of two per role one always has half of its role's."""
    fleet = fleet_of(flow)
    router = start_router(endpoint=[table | {"solo": False} for table in fleet.tables])
    ask_many(router, wire, many, at_once=8)
    served = fleet.served()
    assert served["p0"] + served["p1"] == many
    assert all(0.15 <= share <= 0.35 for share in shares(served).values()), served


@pytest.mark.parametrize("stream", [False, True])
def test_usage_is_merged_over_legs(start_router: Any, fleet_of: Any, flow: str, wire: Any, *, stream: bool) -> None:
    fleet = fleet_of(flow, {"p0": "prefill", "d0": "decode"})
    router = start_router(endpoint=fleet.tables, disagg={"decider": "always"})
    asked = body(wire, 6, stream=stream)
    if stream:
        asked["stream_options"] = {"include_usage": True}
    usages = []
    for _ in range(2):
        answer = router.ask(asked).body
        if stream:
            last = [line for line in answer.split(b"\n") if b'"usage":{' in line][-1]
            usages.append(json.loads(last[6:])["usage"])
        else:
            usages.append(json.loads(answer)["usage"])
    assert (usages[0]["prompt_tokens_details"] or {}).get("cached_tokens") is None
    cached = usages[1]["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < usages[1]["prompt_tokens"]
    assert cached % 16 == 0  # whole blocks of the prefill engine; the decode engine says all but one token
    assert usages[1]["completion_tokens"] == 24
    fact = router.records.fact(1)
    assert fact.tokens_cached == cached
    pair, prefill, decode = fact.attempts
    assert [row.phase for row in fact.attempts] == ["pair", "prefill", "decode"]
    assert [row.route and row.route.replica for row in fact.attempts] == [None, "p0", "d0"]
    assert fact.route is not None
    assert fact.route.replica == "d0"
    assert (pair.tokens_in, pair.tokens_out) == (None, None)
    assert (prefill.tokens_in, prefill.tokens_out, prefill.tokens_cached) == (fact.tokens_in, None, cached)
    assert (decode.tokens_in, decode.tokens_out, decode.tokens_cached) == (None, 24, None)
    assert all(row.ok for row in fact.attempts)


@pytest.mark.parametrize("stream", [False, True])
def test_each_leg_that_answers_as_a_whole_tells_its_load(
    start_router: Any, fleet_of: Any, flow: str, wire: Any, *, stream: bool
) -> None:
    fleet = fleet_of(flow, {"p0": "prefill", "d0": "decode"})
    tables = [table | {"load_header": True} for table in fleet.tables]
    router = start_router(endpoint=tables, disagg={"decider": "always"})
    for _ in range(2):
        answer = router.ask(body(wire, 6, stream=stream))
        assert answer.status == 200
        assert answer.header(b"endpoint-load-metrics") is None
    taken = {"taken": 2, "empty": 0, "bad": 0}
    whole = {"p0", "d0"} if not stream else {"p0"} if flow == "nixl" else set()
    assert router.eventually(lambda: router.app._observer.load_headers.counts == dict.fromkeys(sorted(whole), taken)), (
        router.call(lambda: router.app._observer.load_headers.counts)
    )
    endpoints = router.app.gateway.fleet.endpoints
    for name in whole:
        assert (endpoints[name].waiting, endpoints[name].in_flight_at_report) == (0, 0)


def test_decode_target_only_from_registry(start_router: Any, fleet_of: Any, flow: str, wire: Any) -> None:
    """No client field makes an engine send KV elsewhere; a prefill answer that names another host goes nowhere."""
    fleet = fleet_of(flow)
    router = start_router(endpoint=fleet.tables, disagg={"decider": "always"})
    for field, value in (
        ("kv_transfer_params", {"do_remote_prefill": True, "remote_host": "10.0.0.9", "remote_port": 1}),
        ("bootstrap_host", "10.0.0.9"),
        ("bootstrap_port", 1),
        ("bootstrap_room", 7),
    ):
        refused = router.ask(body(wire, 0) | {field: value})
        assert (refused.status, refused.code) == (400, "forbidden_field")
    assert not any(fleet.served().values())
    assert router.ask(body(wire), b"x-prefiller-host-port: 10.0.0.9:1").status == 200


@pytest.mark.parametrize("sees", [False, True])
def test_images_are_split_only_where_they_travel(start_router: Any, fleet_of: Any, wire: Any, *, sees: bool) -> None:
    fleet = fleet_of("nixl", {"p0": "prefill", "d0": "decode"})
    router = start_router(
        endpoint=[table | {"kv_multimodal": sees} for table in fleet.tables], disagg={"decider": "always"}
    )
    parts = [
        {"type": "text", "text": "what is this? " * 20},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
    ]
    asked = wire.chat(messages=[{"role": "user", "content": parts}], max_tokens=4)
    assert router.ask(asked).status == 200
    assert fleet.served() == {"p0": int(sees), "d0": 1}


@pytest.mark.parametrize("port", [1, 65_535])
def test_a_handover_at_another_port_is_refused(start_router: Any, fleet_of: Any, wire: Any, port: int) -> None:
    fleet = fleet_of("nixl", {"p0": "prefill", "d0": "decode"})
    tables = [table | {"solo": False, "kv_ports": [port, port]} for table in fleet.tables]
    router = start_router(endpoint=tables, disagg={"decider": "always"})
    assert router.ask(body(wire)).status == 502
    assert fleet.served() == {"p0": 1, "d0": 0}, "the decode endpoint is not contacted"
    counts = router.call(lambda: dict(router.app.gateway.fleet.pairing.counts))
    assert counts[("handover_refused", "p0")] == 1


def test_a_hostile_prefill_answer_is_refused(start_router: Any, fleet_of: Any, wire: Any) -> None:
    fleet = fleet_of("nixl", {"p0": "prefill", "d0": "decode"}, kv_host="10.255.255.1")
    router = start_router(endpoint=[table | {"solo": False} for table in fleet.tables], disagg={"decider": "always"})
    assert router.ask(body(wire)).status == 502
    assert fleet.served() == {"p0": 1, "d0": 0}
    counts = router.call(lambda: dict(router.app.gateway.fleet.pairing.counts))
    assert counts[("handover_refused", "p0")] == 1


@pytest.mark.parametrize("place", ["sockets"], indirect=True)  # the admin listener is a library's, on real sockets
def test_the_admin_listener_tells_pairs_and_metrics(start_router: Any, fleet_of: Any, flow: str, wire: Any) -> None:
    fleet = fleet_of(flow, {"p0": "prefill", "d0": "decode"})
    server = {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0"}
    router = start_router(endpoint=fleet.tables, disagg={"decider": "always"}, server=server)
    decided = b""
    for number in range(3):
        decided = router.ask(body(wire, number, stream=True)).header(b"x-turnout-decision")
    admin = router.admin_port
    seen = router.ask(path=b"/x/disagg", method=b"GET", port=admin).json
    assert seen["pools"][wire.MODEL]["split"] == 3
    assert [(row["endpoint"], row["prefill_legs"], row["decode_legs"]) for row in seen["endpoints"]] == [
        ("d0", 0, 3),
        ("p0", 3, 0),
    ]
    assert [(row["prefill"], row["decode"], row["count"]) for row in seen["pairs"]] == [("p0", "d0", 3)]
    assert seen["pairs"][0]["quarantined_until"] is None
    gateway = router.app.gateway
    router.call(lambda: gateway.fleet.pairing.book.pair("p0", "d0").failed(gateway.clock(), 3600.0))
    until_ms = router.ask(path=b"/x/disagg", method=b"GET", port=admin).json["pairs"][0]["quarantined_until"]
    assert 3_000_000 < until_ms - gateway.now_ms() <= 3_600_000
    assert seen["roles"]["prefill"] == {"endpoints": 1, "in_flight": 0, "queue_depth": 0}
    explained = router.ask(path=b"/x/decisions/" + decided, method=b"GET", port=admin).json
    assert explained["legs"] == {"prefill": "p0", "decode": "d0"}
    assert explained["split"]["reason"] == "always"
    page = router.ask(path=b"/metrics", method=b"GET", port=admin).body
    assert b'turnout_disagg_legs_total{endpoint="p0",outcome="ok",phase="prefill"} 3.0' in page
    assert b'turnout_disagg_handovers_total{flow="%b"} 3.0' % flow.encode() in page
    for name in ("prefill_seconds", "first_byte_after_prefill_seconds", "handover_seconds")[
        : 3 if flow == "nixl" else 1
    ]:
        assert b'turnout_disagg_%b_count{pool="%b"} 3.0' % (name.encode(), wire.MODEL.encode()) in page
