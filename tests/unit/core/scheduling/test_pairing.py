"""What is known of hand-overs: shapes, addresses, silent failures, ranks, and who could ever take a prompt."""

from __future__ import annotations

import random
from typing import Any

import pytest

from turnout.core import options
from turnout.core.disagg_options import Disagg
from turnout.core.fleet.handover import Ranks, Rooms, TransferCounters
from turnout.core.fleet.registry import Fleet
from turnout.core.fleet.report import Report
from turnout.core.scheduling import disagg
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision, PairDecision
from turnout.core.scheduling.pairing import Pairing, canonical
from turnout.core.scheduling.pipeline import schedule


def fleet_of(members: dict[str, dict[str, Any]], **disagg_options: Any) -> tuple[Fleet, Pairing, list[dict[str, str]]]:
    fleet = Fleet(options.Scheduling(seed=1, hold_samples=0), options.Prefix(), options.Breaker())
    pairing = fleet.pairing = disagg.pairing(Disagg(decider="always", **disagg_options))
    alarms: list[dict[str, str]] = []
    pairing.alarm = lambda name, fields: alarms.append({"alarm": name, **fields})
    for name, more in members.items():
        role = {"p": "prefill", "d": "decode", "w": "both"}[name[0]]
        table: dict[str, Any] = {"role": role, "solo": False, **more}
        fleet.add(options.Endpoint(name=name, url=f"http://{name}:8000", models=["m"], **table), 0.0)
    return fleet, pairing, alarms


def decide(fleet: Fleet, tokens: int = 8000, **fields: Any) -> Decision:
    pool = fleet.pool("m")
    assert pool is not None
    return schedule(Ask("m", [], tokens, tokens, **fields), pool, fleet, 1.0, random.Random(1))


def legs(decision: Decision) -> tuple[str | None, str | None]:
    chosen = (decision.prefill if isinstance(decision, PairDecision) else None, decision.picked)
    prefill, decode = (None if one is None else one.name for one in chosen)
    return prefill, decode


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ({"kv_tp_size": 4}, {"kv_tp_size": 8}, "geometry_mismatch"),
        ({"kv_block_tokens": 16}, {"kv_block_tokens": 64}, "geometry_mismatch"),
        ({"kv_dtype": "fp8"}, {"kv_dtype": "bf16"}, "geometry_mismatch"),
        ({"kv_transport": "nixl"}, {"kv_transport": "bootstrap"}, "transport_mismatch"),
    ],
)
def test_a_mismatch_drops_the_pair_with_one_alarm(one: dict[str, Any], other: dict[str, Any], reason: str) -> None:
    fleet, _, alarms = fleet_of({"p0": one, "d0": other})
    for _ in range(3):
        assert decide(fleet).picked is None
    assert alarms == [{"alarm": "pair_dropped", "one": "d0", "other": "p0", "reason": reason}]


def test_unknown_facts_pass_and_reports_make_them_known() -> None:
    fleet, pairing, alarms = fleet_of({"p0": {"kv_block_tokens": 16}, "p1": {}, "d0": {}})
    assert decide(fleet).picked is not None
    fleet.observed(fleet.endpoints["d0"], fleet.endpoints["d0"].sent(1.0), Report(block_tokens=64, kv_dtype="fp8"))
    assert legs(decide(fleet)) == ("p1", "d0")
    assert [alarm["reason"] for alarm in alarms] == ["geometry_mismatch"]
    assert pairing.facts["d0"].geometry == {"block_tokens": 64, "dtype": "fp8"}


def test_other_domains_are_no_alarm() -> None:
    fleet, _, alarms = fleet_of({"p0": {"kv_domain": "a"}, "d0": {"kv_domain": "b"}})
    assert decide(fleet).picked is None
    assert alarms == []


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("10.0.0.1", 5600, True),
        ("10.0.0.1", 5607, True),
        ("10.0.0.1", 5608, False),
        ("10.0.0.1", 80, False),
        ("10.0.0.2", 5600, False),
        ("::ffff:10.0.0.1", 5600, True),
        ("[FE80::0:1]", 5600, True),
        ("fe80::1", 5600, True),
        ("Node-7.local.", 5600, True),
        ("10.9.9.9", 5600, True),
    ],
)
def test_a_handover_names_only_its_own_hosts_and_ports(host: str, port: int, *, allowed: bool) -> None:
    hosts = ["10.0.0.1", "fe80::1", "node-7.local"]
    _, pairing, _ = fleet_of({"p0": {"kv_hosts": hosts, "kv_ports": [5600, 5607]}, "d0": {}})
    pairing.addresses["node-7.local"] = frozenset(("10.9.9.9",))
    assert pairing.may_name("p0", host, port) is allowed


def test_an_empty_list_allows_the_registered_host_only() -> None:
    _, pairing, _ = fleet_of({"p0": {}, "d0": {}})
    assert pairing.may_name("p0", "P0", 5600)
    assert not pairing.may_name("p0", "d0", 5600)
    assert canonical("::FFFF:127.0.0.1") == "127.0.0.1"


def test_counters_lay_failures_to_the_latest_handovers_once() -> None:
    counters = TransferCounters()
    assert counters.told("d0", 7.0, 0.0) == []
    for at, prefill in enumerate(("p0", "p1", "p0")):
        counters.handing(prefill, "d0", float(at))
    assert counters.told("d0", 9.0, 3.0) == [("p0", "d0"), ("p1", "d0")]
    assert counters.told("p0", 0.0, 3.0) == []
    assert counters.told("p0", 1.0, 3.0) == [], "the decode endpoint has told of it before"
    assert counters.told("d0", 2.0, 4.0) == [], "a counter that fell began anew"
    counters.handing("p0", "d0", 5.0)
    assert counters.told("d0", 3.0, 100.0) == [], "nothing that old"


def test_three_silent_failures_within_a_minute_let_a_pair_rest() -> None:
    fleet, pairing, _ = fleet_of({"p0": {}, "p1": {}, "d0": {}}, quarantine_s=60.0)
    d0 = fleet.endpoints["d0"]
    for count, at in enumerate((0.0, 10.0, 20.0, 30.0)):
        pairing.transfers.handing("p0", "d0", at)
        fleet.observed(d0, d0.sent(at), Report(failed_transfers=float(count)))
        assert pairing.resting("p0", "d0", at) is (count == 3)
    assert pairing.counts["failures", "7", "nixl"] == 3
    assert legs(decide(fleet)) == ("p1", "d0")
    slow = pairing.book.pair("p1", "d0")
    assert not any(slow.silently(at, 3, 60.0) for at in (0.0, 40.0, 80.0, 130.0)), "never three in a minute"


def test_ranks_go_round_and_rooms_fall_to_them() -> None:
    ranks, rooms, rng = Ranks(), Rooms(), random.Random(1)
    assert [ranks.take("p0", 3) for _ in range(5)] == [0, 1, 2, 0, 1]
    ranks.give("p0", 2)
    assert ranks.take("p0", 3) == 2
    assert ranks.open_legs("p0") == [2, 2, 1]
    for rank in (0, 1, 2):
        drawn = [rooms.draw(0.0, rng, 3, rank) for _ in range(100)]
        assert all(room % 3 == rank and 0 <= room < 2**63 for room in drawn)
        assert len(set(drawn)) == 100


@pytest.mark.parametrize("role", ["p", "d"])
def test_what_a_whole_role_can_never_hold_is_unservable(role: str) -> None:
    fleet, _, _ = fleet_of({"p0": {"context_max": 10_000}, "d0": {"context_max": 10_000}, "p1": {}, "d1": {}})
    assert decide(fleet, 20_000).picked is not None
    fleet, _, _ = fleet_of({name: {"context_max": 10_000} if name[0] == role else {} for name in ("p0", "d0")})
    decision = decide(fleet, 20_000)
    assert decision.picked is None
    assert ("", "never_fits") in decision.dropped
    fleet, _, _ = fleet_of({"p0": {}, "d0": {}})
    fleet.endpoints[f"{role}0"].kv_capacity_tokens = 10_000
    assert ("", "never_fits") in decide(fleet, 20_000).dropped


@pytest.mark.parametrize("decode_policy", [None, "least_busy"])
def test_a_full_role_is_named(decode_policy: Any) -> None:
    fleet, _, _ = fleet_of({"p0": {"max_in_flight": 1}, "d0": {}}, decode_policy=decode_policy)
    fleet.endpoints["p0"].in_flight = 1
    assert {reason for name, reason in decide(fleet).dropped if not name} & {"prefill", "prefill_saturated"}
    fleet, _, _ = fleet_of({"p0": {}, "d0": {"max_in_flight": 1}}, decode_policy=decode_policy)
    fleet.endpoints["d0"].in_flight = 1
    assert ("", "decode") in decide(fleet).dropped


def test_a_full_prefill_role_is_relieved_up_to_a_bound() -> None:
    fleet, _, _ = fleet_of({"p0": {"max_in_flight": 1}, "d0": {"solo": True}})
    fleet.endpoints["p0"].in_flight = 1
    small, large = decide(fleet, 4096), decide(fleet, 4097)
    assert isinstance(small, PairDecision)
    assert small.pair is not None
    assert (legs(small), small.pair.reason) == ((None, "d0"), "prefill_saturated")
    assert large.picked is None
    fleet.endpoints["p0"].unreachable = True
    assert legs(decide(fleet, 9000)) == (None, "d0"), "with no live pair there is nothing to wait for"


@pytest.mark.parametrize("rule", [None, "round_robin"])
@pytest.mark.parametrize("solo", [False, True])
def test_with_all_prefill_breakers_open_one_endpoint_alone_serves_if_any_may(rule: Any, *, solo: bool) -> None:
    """F54; without one the breakers are relaxed, and the decision says for which leg."""
    fleet, _, _ = fleet_of({"p0": {}, "p1": {}, "d0": {"solo": solo}}, decode_policy=rule, prefill_policy=rule)
    for name in ("p0", "p1"):
        for _ in range(3):
            breaker = fleet.endpoints[name].breaker
            breaker.fault(breaker.opened(1.0), 1.0)
    decision = decide(fleet)
    assert decision.picked is fleet.endpoints["d0"]
    assert (legs(decision)[0] is None) is solo


def test_images_travel_only_where_they_may() -> None:
    for sees, split in ((False, False), (True, True)):
        more = {"kv_multimodal": sees, "solo": True}
        fleet, _, _ = fleet_of({"p0": more, "d0": more})
        assert (legs(decide(fleet, whole="multimodal"))[0] is not None) is split


def test_an_unused_decode_endpoint_is_kept() -> None:
    for rule in (None, "round_robin"):
        fleet, _, _ = fleet_of({"p0": {}, "p1": {}, "d0": {}, "d1": {}}, decode_policy=rule, prefill_policy=rule)
        for decode in ("d0", "d1", "d1"):
            assert legs(decide(fleet, tried=("p0",), decode=decode)) == ("p1", decode)
        assert legs(decide(fleet, tried=("p0", "d1"), decode="d1")) == ("p1", "d0")


def test_auto_roles_are_nobodys_candidate_until_they_are_known() -> None:
    fleet, _, _ = fleet_of({"p0": {"role": "auto"}, "d0": {"role": "decode"}})
    assert decide(fleet).picked is None
    declared = fleet.declared("p0")
    assert declared is not None
    told = options.Endpoint(name="p0", url="http://p0:8000", models=["m"], role="prefill")
    assert fleet.redeclared(fleet.endpoints["p0"], told, 1.0) is not None
    assert legs(decide(fleet)) == ("p0", "d0")
    assert fleet.declared("nobody") is None


def test_a_role_rule_that_reads_owners_has_its_own() -> None:
    """SGLang's rule follows the endpoint that got a prefix last, per role."""
    fleet, pairing, _ = fleet_of(
        {"p0": {}, "p1": {}, "d0": {}, "d1": {}},
        prefill_policy="sglang_cache_aware",
        decode_policy="sglang_cache_aware",
    )
    pool = fleet.pool("m")
    assert pool is not None
    assert pool.pairs is not None
    found = []
    for keys in ([1, 2, 3], [7, 8, 9], [1, 2, 3], [7, 8, 9], [1, 2, 3]):
        ask = Ask("m", keys, 8000, 8000)
        decision = schedule(ask, pool, fleet, 1.0, random.Random(1))
        found.append(legs(decision))
        opened = pool.pairs.legs(decision, ask, pool, fleet, 1.0)
        opened.ended(1.0, None)
    assert found[0] == found[2] == found[4]
    assert found[1] == found[3]
    assert pairing.counts["decisions", "m", "split", "always"] == 5
