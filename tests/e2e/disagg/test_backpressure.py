"""A full decode pool holds requests back before any prefill work is spent on them."""

from __future__ import annotations

from typing import Any


def body(wire: Any, **members: Any) -> dict[str, Any]:
    chat: dict[str, Any] = wire.chat(messages=[{"role": "user", "content": "tell me more " * 20}], max_tokens=8)
    return chat | members


def test_decode_side_pushes_back(start_router: Any, fleet_of: Any, flow: str, wire: Any, eventually: Any) -> None:
    fleet = fleet_of(flow, {"p0": "prefill", "d0": "decode"})
    tables = [
        table | {"solo": False} | ({"max_in_flight": 1} if table["name"] == "d0" else {}) for table in fleet.tables
    ]
    router = start_router(endpoint=tables, disagg={"decider": "always"}, admission={"queue_max": 1})
    first, second = router.client(), router.client()
    first.send(router.request(body(wire, stream=True, max_tokens=20_000, ignore_eos=True)))
    first.read(b"data:")
    second.send(router.request(body(wire)))
    assert router.eventually(lambda: len(router.app.gateway.runs) == 2)
    refused = router.ask(body(wire))
    assert refused.status == 503
    assert refused.header(b"retry-after") is not None
    assert fleet.served() == {"p0": 1, "d0": 1}
    first.close(reset=True)
    assert second.response().status == 200
    assert fleet.served() == {"p0": 2, "d0": 2}
    assert eventually(fleet.idle), fleet.states()
