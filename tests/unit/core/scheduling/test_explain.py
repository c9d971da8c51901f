import json
import random

import pytest

from turnout.core import options
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.explain import brief, explain, recompute
from turnout.core.scheduling.packing import pack
from turnout.core.scheduling.pipeline import schedule
from turnout.core.scheduling.policies import POLICIES
from turnout.core.scheduling.types import DropReason

KEYS = [21, 22, 23]


def fleet_of(policy: str, *names: str) -> tuple[Fleet, Pool]:
    fleet = Fleet(options.Scheduling(policy=policy), options.Prefix(), options.Breaker())  # type: ignore[arg-type]
    for name in names:
        fleet.add(options.Endpoint(name=name, url="http://127.0.0.1:1", models=["m"]), 0.0)
    pool = fleet.pool("m")
    assert pool is not None
    return fleet, pool


def test_document_shows_candidates_drops_terms_and_ranks() -> None:
    fleet, pool = fleet_of("affinity_load", "a", "b", "c")
    fleet.endpoints["a"].draining = True
    fleet.endpoints["b"].in_flight = 4
    fleet.index.record(KEYS, fleet.endpoints["b"].bit, 0.0)
    document = explain(schedule(Ask("m", KEYS, 200, 150), pool, fleet, 2.5, random.Random(1)), "req_1")
    assert document["dropped"] == [{"endpoint": "a", "reason": "draining", "detail": "it is being emptied"}]
    assert (document["key_space"], document["block_size"], document["bytes_per_token"]) == ("tok", 64.0, None)
    assert (document["request_id"], document["pool"], document["now_s"]) == ("req_1", "m", 2.5)
    assert document["picked"] == "c"
    assert document["prefix_result"] == "declined"
    by_name = {candidate["endpoint"]: candidate for candidate in document["candidates"]}
    assert by_name["b"]["terms"] == {"affinity": 1.0, "load": 1.0}
    assert (by_name["b"]["total"], by_name["c"]["total"]) == (0.0, 1.0)
    assert (by_name["c"]["rank"], by_name["b"]["rank"]) == (1, 2)
    assert by_name["b"]["load"] == {"busy": 4, "in_flight": 4}


def test_a_prompt_that_is_matched_by_its_text_says_so() -> None:
    fleet, pool = fleet_of("turnout", "a")
    ask = Ask("m", KEYS, 200, 150, block_tokens=51.2, prompt_bytes=1000)
    document = explain(schedule(ask, pool, fleet, 0.0, random.Random(1)), "r")
    assert (document["key_space"], document["block_size"], document["bytes_per_token"]) == ("text", 256, 5.0)
    ask = Ask("m", [], 10, 10)
    assert explain(schedule(ask, pool, fleet, 0.0, random.Random(1)), "r")["key_space"] is None


@pytest.mark.parametrize("reason", DropReason)
def test_every_reason_is_explained(reason: DropReason) -> None:
    fleet, pool = fleet_of("turnout", "a")
    decision = schedule(Ask("m", [], 10, 10), pool, fleet, 0.0, random.Random(1))
    decision.dropped = (("b", reason),)
    (drop,) = explain(decision, "r")["dropped"]
    assert drop["detail"]


def test_reports_are_shown_with_their_age() -> None:
    fleet, pool = fleet_of("least_busy", "a", "b")
    fleet.endpoints["a"].reported(1.0, 0, 3, 1)
    document = explain(schedule(Ask("m", [], 200, 150), pool, fleet, 2.5, random.Random(1)), "r")
    assert [candidate["load"] for candidate in document["candidates"]] == [
        {"busy": 4, "in_flight": 0, "running": 3, "waiting": 1, "age_s": 1.5, "estimated": False},
        {"busy": 4, "in_flight": 0, "running": None, "waiting": None, "age_s": None, "estimated": True},
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_recompute_gives_the_pick_and_the_totals_bit_for_bit(policy: str) -> None:
    rng = random.Random(11)
    fleet, pool = fleet_of(policy, "a", "b", "c", "d", "e")
    for number in range(200):
        for member in pool.members:
            member.in_flight = rng.randrange(4)
        keys = [number % 5, 100 + number % 5, 200 + number % 3][: rng.randrange(4)]
        if number % 2:
            fleet.endpoints["b"].reported(float(number), 0, rng.randrange(5), rng.randrange(3))
        decision = schedule(Ask("m", keys, 200, 150), pool, fleet, float(number), rng)
        document = json.loads(json.dumps(explain(decision, "r")))
        totals = [candidate["total"] for candidate in document["candidates"]]
        assert recompute(document) == (document["picked"], totals)
        assert decision.picked is not None
        pack(decision)
        assert (decision.rows, decision.totals, decision.busy) == ((), (), [])
        assert json.loads(json.dumps(explain(decision, "r"))) == document
        if keys:
            fleet.index.record(keys, decision.picked.bit, float(number))


def test_what_is_stored_is_the_pick_the_nine_best_and_counts_by_reason() -> None:
    names = [f"e{number:02}" for number in range(20)]
    fleet, pool = fleet_of("least_busy", *names)
    for number, name in enumerate(names[:15]):
        fleet.endpoints[name].in_flight = 15 - number
    for name in names[15:]:
        fleet.endpoints[name].draining = True
    document = explain(schedule(Ask("m", [], 200, 150), pool, fleet, 2.5, random.Random(1)), "r")
    stored = brief(document)
    assert [candidate["endpoint"] for candidate in stored["candidates"]] == names[5:15]  # by name, as they were asked
    assert (stored["candidates_total"], stored["dropped"], stored["picked"]) == (15, {"draining": 5}, "e14")
    assert len(json.dumps(stored)) < 16_384
    assert len(document["candidates"]) == 15


def test_explaining_changes_no_state_and_may_come_late() -> None:
    fleet, pool = fleet_of("affinity_load", "a", "b")
    decision = schedule(Ask("m", KEYS, 200, 150), pool, fleet, 0.0, random.Random(1))
    first = explain(decision, "r")
    counter = pool.rotation.counter
    fleet.endpoints["a"].in_flight = 9
    fleet.remove("b")
    assert explain(decision, "r") == first
    assert pool.rotation.counter == counter


def test_no_candidate_is_explained_too() -> None:
    fleet, pool = fleet_of("affinity_load", "a")
    fleet.endpoints["a"].unreachable = True
    document = explain(schedule(Ask("m", KEYS, 200, 150), pool, fleet, 0.0, random.Random(1)), "r")
    assert (document["picked"], document["candidates"]) == (None, [])
    assert [(drop["endpoint"], drop["reason"]) for drop in document["dropped"]] == [("a", "unreachable")]
    assert recompute(document) == (None, [])
