"""The failure table of split requests on real sockets: each row is injected, and the client gets one clean answer."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest


def body(wire: Any, number: int = 0, **members: Any) -> dict[str, Any]:
    text = f"question {number}: " + "tell me more about trains and points " * 8
    chat: dict[str, Any] = wire.chat(messages=[{"role": "user", "content": text}], max_tokens=24)
    return chat | members


def counts(router: Any) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = router.call(lambda: dict(router.app.gateway.fleet.pairing.counts))
    return found


def rows(router: Any, flow: str) -> set[str]:
    return {labels[1] for labels in counts(router) if labels[0] == "failures" and labels[2] == flow}


def rerouted(router: Any) -> int:
    return sum(count for labels, count in counts(router).items() if labels[0] == "rerouted")


def at_rest(router: Any) -> bool:
    fleet = router.app.gateway.fleet
    open_ones = sum(e.in_flight + e.pending_prefill_tokens + e.active_tokens for e in fleet.endpoints.values())
    return not open_ones and not len(fleet.pairing.rooms) and not router.app.gateway.runs


def start(start_router: Any, fleet: Any, **tables: Any) -> Any:
    disagg = {"decider": "always", "quarantine_s": 0.2, **tables.pop("disagg", {})}
    return start_router(
        endpoint=[table | {"solo": False} for table in fleet.tables],
        disagg=disagg,
        resume={"scope": "replicas"},
        **tables,
    )


def ask_well(router: Any, wire: Any, expected: str, **members: Any) -> None:
    answer = router.ask(body(wire, **members))
    assert answer.status == 200, answer.body
    assert answer.json["choices"][0]["message"]["content"] == expected


@pytest.fixture
def expected(start_router: Any, fleet_of: Any, wire: Any) -> str:
    """What one endpoint alone answers."""
    alone = fleet_of("nixl", {"whole": "both"})
    content: str = start_router(endpoint=alone.tables).ask(body(wire)).json["choices"][0]["message"]["content"]
    return content


@pytest.fixture
def split(start_router: Any, fleet_of: Any, flow: str, eventually: Any) -> Any:
    """A router over 2 × 2 engines; at the end nothing is open anywhere."""
    fleet = fleet_of(flow, kv_lease_s=1.0)
    router = start(start_router, fleet)
    yield router, fleet
    assert router.eventually(lambda: at_rest(router))
    assert eventually(fleet.idle), fleet.states()


def strike(fleet: Any, role: str, **fault: Any) -> None:
    for name in fleet.engines:
        if name[0] == role:
            fleet.inject(name, **fault)


@pytest.mark.parametrize("role", ["p", "d"])
def test_row_1_the_clients_fault_is_answered_as_it_is(split: Any, wire: Any, flow: str, role: str) -> None:
    router, fleet = split
    strike(fleet, role, kind="status", status=400, match="/v1/chat/completions")
    assert router.ask(body(wire)).status == 400
    assert rerouted(router) == 0
    if role == "p":
        assert rows(router, flow) == {"1"}
        if flow == "nixl":
            assert fleet.served()["d0"] + fleet.served()["d1"] == 0


@pytest.mark.parametrize("status", [429, 503])
def test_row_2_a_prefill_that_refuses_is_replaced(split: Any, wire: Any, flow: str, expected: str, status: int) -> None:
    router, fleet = split
    fleet.inject("p0", kind="status", status=status)
    for _ in range(4):
        ask_well(router, wire, expected)
    assert rows(router, flow) == {"2"}
    assert rerouted(router) >= 1


@pytest.mark.parametrize("kind", ["reset", "garbage", "refuse"])
def test_row_3_a_prefill_that_dies_is_replaced(split: Any, wire: Any, flow: str, expected: str, kind: str) -> None:
    router, fleet = split
    fleet.inject("p0", kind=kind)
    for _ in range(4):
        ask_well(router, wire, expected)
    # A listener that is closed is met by whoever connects first: the router, or the decode engine that fetches.
    assert rows(router, flow) & ({"3", "6"} if kind == "refuse" else {"3"})


def test_row_4_no_kv_params_is_no_failure(start_router: Any, fleet_of: Any, wire: Any, expected: str) -> None:
    fleet = fleet_of("nixl")
    router = start(start_router, fleet)
    strike(fleet, "p", kind="no_kv_params")
    ask_well(router, wire, expected)
    assert rows(router, "nixl") == {"4"}
    assert rerouted(router) == 0


def test_rows_5_and_6_a_transfer_that_fails_makes_a_new_pair(split: Any, wire: Any, flow: str, expected: str) -> None:
    router, fleet = split
    fleet.inject("p0", kind="transfer_fail", count=1)
    for _ in range(4):
        ask_well(router, wire, expected)
    assert rows(router, flow) & {"3", "5", "6"}
    assert rerouted(router) >= 1
    if flow == "nixl":
        pairs = router.call(router.app.gateway.fleet.pairing.book.items)
        assert sum(state.failures for _, state in pairs) >= 1
        assert any(labels[0] == "reprefilled" for labels in counts(router))


def test_row_7_recompute_is_silent(start_router: Any, fleet_of: Any, wire: Any, expected: str) -> None:
    fleet = fleet_of("nixl", kv_load_failure_policy="recompute")
    router = start(start_router, fleet)
    strike(fleet, "p", kind="transfer_fail", count=1)
    ask_well(router, wire, expected)
    assert rerouted(router) == 0
    assert sum(state["handovers"]["recomputed"] for state in fleet.states().values()) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_row_8_a_decode_that_refuses_leaves_the_handover_to_another(
    split: Any, wire: Any, flow: str, expected: str, status: int
) -> None:
    router, fleet = split
    router.call(lambda: None)
    fleet.inject("d0", kind="status", status=status, count=1)
    for _ in range(4):
        ask_well(router, wire, expected)
    assert "8" in rows(router, flow)


def test_row_8_reuses_the_handover_while_its_lease_lasts(
    start_router: Any, fleet_of: Any, wire: Any, expected: str
) -> None:
    fleet = fleet_of("nixl", kv_lease_s=30.0)
    router = start(start_router, fleet)
    fleet.inject("d0", kind="status", status=503, count=1)
    fleet.inject("d1", kind="status", status=503, count=1, after_requests=1)
    for _ in range(3):
        ask_well(router, wire, expected)
    assert any(labels[0] == "handle_reused" for labels in counts(router))
    prefills = sum(count for name, count in fleet.served().items() if name[0] == "p")
    assert prefills == 3  # one each: none was made again


def test_row_9_a_decode_that_dies_before_its_first_byte(split: Any, wire: Any, flow: str, expected: str) -> None:
    router, fleet = split
    fleet.inject("d0", kind="reset")
    for _ in range(4):
        ask_well(router, wire, expected)
    assert "9" in rows(router, flow)


def test_row_10_a_stream_that_breaks_ends_in_band_or_goes_on(split: Any, wire: Any) -> None:
    router, fleet = split
    strike(fleet, "d", kind="cut_mid_stream", after_tokens=5, count=1)
    answer = router.ask(body(wire, stream=True))
    assert answer.status == 200
    assert (b"[DONE]" in answer.body) != (b'"error"' in answer.body)


def test_row_11_an_expired_lease_makes_the_prefill_again(
    start_router: Any, fleet_of: Any, wire: Any, expected: str
) -> None:
    fleet = fleet_of("nixl")
    router = start(start_router, fleet, disagg={"lease_s": 1e-3})
    fleet.inject("p0", kind="lease_expire", count=1)
    fleet.inject("p1", kind="lease_expire", count=1)
    answer = router.ask(body(wire))
    assert answer.status in (200, 500)
    for _ in range(3):
        ask_well(router, wire, expected)
    assert rows(router, "nixl") & {"6", "11"}


def test_row_12_a_pair_that_hangs_is_replaced_and_rests(start_router: Any, fleet_of: Any, wire: Any, flow: str) -> None:
    fleet = fleet_of(flow)
    router = start(start_router, fleet, disagg={"first_byte_after_prefill_s": 0.4, "prefill_timeout_s": 0.4})
    fleet.inject("p0", kind="transfer_slow", factor=1e6, count=1)
    for _ in range(4):
        answer = router.ask(body(wire, stream=True))
        assert answer.status == 200
        assert b"[DONE]" in answer.body
    assert "12" in rows(router, flow)
    breakers = router.call(lambda: [str(e.breaker.state) for e in router.app.gateway.fleet.endpoints.values()])
    assert breakers == ["closed"] * 4


@pytest.mark.parametrize("where", ["during the prefill", "between first and last byte"])
def test_row_13_a_client_that_leaves_ends_both_legs(split: Any, wire: Any, where: str, eventually: Any) -> None:
    router, fleet = split
    client = router.client()
    if where == "during the prefill":
        strike(fleet, "p", kind="accept_hang", count=1, match="/v1/chat/completions")
    client.send(router.request(body(wire, stream=True, max_tokens=4000, ignore_eos=True)))
    if where != "during the prefill":
        client.read(b"data:")
    else:
        assert router.eventually(lambda: any(e.in_flight for e in router.app.gateway.fleet.endpoints.values()))
    client.close(reset=True)
    assert router.eventually(lambda: at_rest(router))
    strike_off(fleet)
    assert eventually(fleet.idle), fleet.states()


def strike_off(fleet: Any) -> None:
    for name in fleet.engines:
        fleet.clear(name)


def test_row_15_without_any_pair_the_last_answer_is_told(split: Any, wire: Any) -> None:
    router, fleet = split
    strike(fleet, "p", kind="status", status=503)
    answer = router.ask(body(wire))
    assert answer.status == 503
    strike_off(fleet)


def test_other_leg_is_aborted(start_router: Any, fleet_of: Any, wire: Any, eventually: Any) -> None:
    """A prefill that fails ends the decode leg at once, in the concurrent flow where both are open."""
    fleet = fleet_of("bootstrap", {"p0": "prefill", "d0": "decode"})
    router = start(start_router, fleet)
    fleet.inject("p0", kind="status", status=500)
    begun = time.monotonic()
    assert router.ask(body(wire)).status >= 500
    assert eventually(fleet.idle)
    assert time.monotonic() - begun < 3.0
    assert counts(router)[("aborts", "bootstrap", "decode")] >= 1
    fleet.clear("p0")


@pytest.mark.parametrize("place", ["sockets"], indirect=True)  # threads that ask; virtual: tests/simulation/disagg
def test_killing_one_of_each_wedges_nobody(
    start_router: Any, fleet_of: Any, wire: Any, flow: str, eventually: Any
) -> None:
    fleet = fleet_of(flow)
    router = start(start_router, fleet, probe={"interval_s": 0.2, "timeout_s": 0.2}, timeout={"first_token_s": 5.0})
    ended: list[tuple[float, int, bytes]] = []
    stop = threading.Event()

    def load(worker: int) -> None:
        number = worker * 10_000
        while not stop.is_set():
            number += 1
            try:
                answer = router.ask(body(wire, number, stream=True))
            except OSError as error:
                ended.append((time.monotonic(), 0, repr(error).encode()))
                continue
            whole = b"[DONE]" in answer.body or b'"error"' in answer.body
            ended.append((time.monotonic(), answer.status if whole else -1, answer.body[-200:]))

    workers = [threading.Thread(target=load, args=(worker,)) for worker in range(6)]
    for worker in workers:
        worker.start()
    try:
        time.sleep(0.3)
        fleet.kill("p0")
        time.sleep(0.7)
        fleet.kill("d0")
        killed = time.monotonic()
        time.sleep(1.7)
        later = [status for at, status, _ in ended if at > killed + 1.0]
        assert len(later) > 10
        assert set(later) == {200}, [each for each in ended if each[1] != 200][:5]
        before = {name: state["requests_total"] for name, state in fleet.states().items()}
        fleet.restart("p0")
        fleet.restart("d0")
        assert eventually(lambda: min(fleet.served()[name] for name in ("p0", "d0")) > 0)
    finally:
        stop.set()
        for worker in workers:
            worker.join(10.0)
    assert not any(worker.is_alive() for worker in workers)
    assert not [each for each in ended if each[1] in (0, -1)], "every request ends in an answer or one clean error"
    after = fleet.served()
    assert after["p1"] > before["p1"]
    assert router.eventually(lambda: at_rest(router))
