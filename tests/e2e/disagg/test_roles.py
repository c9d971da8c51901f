"""Roles that nobody wrote down: told by the engine itself, or registered while the router runs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

TOKEN = "register-me"


def body(wire: Any) -> dict[str, Any]:
    chat: dict[str, Any] = wire.chat(messages=[{"role": "user", "content": "tell me of trains " * 20}], max_tokens=8)
    return chat


def roles(router: Any) -> dict[str, str]:
    return {name: e.role for name, e in router.app.gateway.fleet.endpoints.items()}


def test_sglang_engines_tell_their_role(start_router: Any, fleet_of: Any, wire: Any) -> None:
    fleet = fleet_of("bootstrap", {"p0": "prefill", "d0": "decode", "w0": "both"}, dialect="sglang")
    tables = [
        {name: value for name, value in table.items() if name not in ("kv_transport", "bootstrap_port")}
        | {"role": "auto", "family": "sglang"}
        for table in fleet.tables
    ]
    router = start_router(endpoint=tables, disagg={"decider": "always"})
    assert router.eventually(lambda: roles(router) == {"p0": "prefill", "d0": "decode", "w0": "both"})
    for _ in range(4):
        assert router.ask(body(wire)).status == 200
    pairing = router.app.gateway.fleet.pairing
    assert pairing.facts["p0"].bootstrap_port == fleet.tables[0]["bootstrap_port"]
    assert pairing.facts["p0"].geometry == {"block_tokens": 16, "tp_size": 1}
    assert pairing.facts["p0"].transport == "bootstrap"
    assert fleet.served()["p0"] + fleet.served()["w0"] >= 4


def test_an_engine_without_such_a_page_serves_whole_requests(start_router: Any, fleet_of: Any, wire: Any) -> None:
    fleet = fleet_of("nixl", {"w0": "both"})
    router = start_router(endpoint=[table | {"role": "auto"} for table in fleet.tables])
    assert router.eventually(lambda: roles(router) == {"w0": "both"})
    assert router.ask(body(wire)).status == 200


def test_mooncake_pairs_wait_for_the_introduction(start_router: Any, fleet_of: Any, wire: Any) -> None:
    fleet = fleet_of("mooncake", {"p0": "prefill", "d0": "decode"})
    fleet.inject("p0", kind="status", status=503, match="/query")
    router = start_router(
        endpoint=[table | {"solo": False} for table in fleet.tables], admission={"wait_for_endpoint": False}
    )
    assert router.ask(body(wire)).status == 503
    fleet.clear("p0")
    pairing = router.app.gateway.fleet.pairing
    assert router.eventually(lambda: pairing.introduced == {"p0": {0: "p0"}})
    assert router.ask(body(wire)).status == 200
    assert fleet.served() == {"p0": 1, "d0": 1}


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("solo", [False, True])
def test_one_role_alone_is_nobody_unless_it_may_serve_alone(
    start_router: Any, fleet_of: Any, wire: Any, role: str, *, solo: bool
) -> None:
    fleet = fleet_of("nixl", {"x0": role})
    router = start_router(
        endpoint=[table | {"solo": solo} for table in fleet.tables], admission={"wait_for_endpoint": False}
    )
    answer = router.ask(body(wire))
    assert answer.status == (200 if solo else 503)
    assert str(router.records.fact(0).outcome) == ("completed" if solo else "no_endpoint")


def test_a_prompt_that_no_endpoint_of_a_role_holds_is_unservable(start_router: Any, fleet_of: Any, wire: Any) -> None:
    fleet = fleet_of("nixl", {"p0": "prefill", "d0": "decode"})
    tables = [
        table | {"solo": False} | ({"context_max": 64} if table["name"] == "d0" else {}) for table in fleet.tables
    ]
    router = start_router(endpoint=tables, probe={"interval_s": 3600.0})
    decode = router.app.gateway.fleet.endpoints["d0"]
    assert router.eventually(lambda: decode.context_max not in (None, 64))  # the engine has told its own
    router.call(lambda: setattr(decode, "context_max", 64))
    answer = router.ask(wire.chat(messages=[{"role": "user", "content": "a long story " * 400}], max_tokens=4))
    assert answer.status == 400, answer.body
    assert fleet.served() == {"p0": 0, "d0": 0}


@pytest.mark.parametrize("place", ["sockets"], indirect=True)  # engines that follow a script have threads
def test_ranks_are_chosen_and_given_back(start_router: Any, script_engine: Any, wire: Any) -> None:
    """SGLang: the room falls to the prefill rank, both legs name their own, and the decode leg the prefill's."""
    prefill, decode = script_engine(), script_engine()
    common = {"models": [wire.MODEL], "family": "sglang", "kv_ranks": 4, "kv_route_ranks": True}
    router = start_router(
        endpoint=[
            {"name": "p0", "url": prefill.url, "role": "prefill", **common},
            {"name": "d0", "url": decode.url, "role": "decode", **common},
        ],
        disagg={"decider": "always"},
    )
    for _ in range(8):
        assert router.ask(body(wire)).status == 200
    legs = [(prefill.request(n).json, decode.request(n).json) for n in range(8)]
    assert sorted(one["routed_dp_rank"] for one, _ in legs) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sorted(two["routed_dp_rank"] for _, two in legs) == [0, 0, 1, 1, 2, 2, 3, 3]
    for one, two in legs:
        assert one["bootstrap_room"] == two["bootstrap_room"]
        assert one["bootstrap_room"] % 4 == one["routed_dp_rank"] == two["disagg_prefill_dp_rank"]
        assert "disagg_prefill_dp_rank" not in one
    pairing = router.app.gateway.fleet.pairing
    assert router.eventually(lambda: pairing.ranks.open_legs("p0") == pairing.ranks.open_legs("d0") == [0] * 4)


@pytest.fixture
def registering(start_router: Any, fleet_of: Any) -> Any:
    """A router with one engine for everything and a door for others, and engines that want in."""
    fleet = fleet_of("nixl", {"w0": "both", "p0": "prefill", "d0": "decode"})
    server = {
        "listen": "127.0.0.1:0",
        "admin_listen": "127.0.0.1:0",
        "registration_digest": "sha256:" + hashlib.sha256(TOKEN.encode()).hexdigest(),
    }
    router = start_router(
        endpoint=[fleet.tables[0] | {"max_in_flight": 100}], disagg={"decider": "always"}, server=server
    )

    def change(method: str, name: str, document: Any = None, token: str = TOKEN) -> Any:
        return router.ask(
            json.dumps(document).encode() if document is not None else b"",
            path=f"/x/endpoints/{name}".encode(),
            method=method.encode(),
            port=router.admin_port,
            key=token,
        )

    return router, fleet, change


@pytest.mark.parametrize("place", ["sockets"], indirect=True)
def test_engines_register_with_their_role_and_leave(registering: Any, wire: Any) -> None:
    router, fleet, change = registering
    tables = {table["name"]: {k: v for k, v in table.items() if k != "name"} for table in fleet.tables}
    for name in ("p0", "d0"):
        answer = change("PUT", name, tables[name])
        assert (answer.status, answer.json["role"]) == (200, tables[name]["role"])
    assert roles(router) == {"w0": "both", "p0": "prefill", "d0": "decode"}
    before = router.app.gateway.fleet.endpoints["p0"].incarnation
    assert change("PUT", "p0", tables["p0"]).status == 200
    assert router.app.gateway.fleet.endpoints["p0"].incarnation == before, "the same again changes nothing"
    for _ in range(8):
        assert router.ask(body(wire)).status == 200
    served = fleet.served()
    assert served["p0"] > 0
    assert served["d0"] > 0
    router.app.reload()
    assert roles(router) == {"w0": "both", "p0": "prefill", "d0": "decode"}, "a reload leaves who has registered"
    assert change("DELETE", "p0").status == 200
    assert change("DELETE", "d0").status == 200
    assert change("DELETE", "d0").status == 404
    assert roles(router) == {"w0": "both"}
    assert router.ask(body(wire)).status == 200


@pytest.mark.parametrize("place", ["sockets"], indirect=True)
def test_nobody_registers_who_may_not(registering: Any, wire: Any) -> None:
    router, fleet, change = registering
    table = {k: v for k, v in fleet.tables[1].items() if k != "name"}
    refused = change("PUT", "p0", table, token="guessed")
    assert (refused.status, refused.code) == (401, "invalid_registration_token")
    for wrong, code in (
        (table | {"role": "boss"}, "invalid_endpoint"),
        (table | {"url": "file:///etc/passwd"}, "invalid_endpoint"),
        (table | {"name": "other"}, "invalid_endpoint"),
        (table | {"kv_ports": [9, 8]}, "invalid_endpoint"),
        (table | {"models": ["unheard-of"]}, "endpoint_refused"),
    ):
        answer = change("PUT", "p0", wrong)
        assert answer.code == code, answer.body
    assert change("PUT", "w0", table | {"role": "both"}).code == "endpoint_refused", "configured ones stay as they are"
    assert change("PUT", "p0", {"x": "y" * 70_000}).status == 413
    assert roles(router) == {"w0": "both"}
    closed = router.ask(wire.chat())
    assert closed.status == 200
