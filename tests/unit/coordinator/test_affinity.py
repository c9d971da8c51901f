"""Policies, the golden state of scheduling §5.1, cap and TTL at their boundaries, and upstream's own schedule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from turnout.coordinator.affinity import Chooser
from turnout.coordinator.control import State
from turnout.coordinator.listener import schedule_of
from turnout.coordinator.peers import Attempt, Engine
from turnout.coordinator.rehearsal import Rehearsal
from turnout.coordinator.schedule_log import Scheduled, ScheduleLog
from turnout.core.coordinator_options import Affinity, Coordinator
from turnout.engines import megatron as wire

BLOCKS = list(range(1, 513))


def engines(chooser: Chooser, **busy: int) -> list[Engine]:
    there = []
    for name, count in sorted(busy.items()):
        engine = Engine(name.encode(), 1, chooser.index.assign(0.0), State.RUNNING, 0.0)
        opened: Any = dict.fromkeys(range(count))
        engine.open = opened
        there.append(engine)
    return there


def golden(**affinity: Any) -> str:
    chooser = Chooser(Affinity(**affinity), 256)
    a, b, c = engines(chooser, A=14, B=2, C=5)
    chooser.record(BLOCKS[:384], a, 0.0)
    chooser.record(BLOCKS[:128], c, 0.0)
    return chooser.choose(BLOCKS, [a, b, c], 0.0).engine.name


@pytest.mark.parametrize(
    ("affinity", "picked"),
    [
        ({"policy": "least_busy"}, "B"),
        ({"policy": "load_balanced"}, "B"),
        ({"policy": "longest_prefix"}, "A"),
        ({"policy": "first_block"}, "C"),
        ({"policy": "first_prefix_block"}, "C"),
        ({"policy": "affinity_load"}, "B"),
        ({"policy": "affinity_load", "form": "free_capacity"}, "A"),
        ({"policy": "affinity_load", "form": "free_capacity", "match": "deepest_row"}, "A"),
        ({"policy": "affinity_load", "form": "free_capacity", "alpha": 0.0}, "B"),
        ({"policy": "affinity_load", "beta": 0.0}, "A"),
    ],
)
def test_golden_state(affinity: dict[str, Any], picked: str) -> None:
    assert golden(**affinity) == picked


def test_alpha_weighs_match_against_free_capacity() -> None:
    # One engine holds half of the prompt and has 100 of 256 open: .25 + .305 with alpha .5, against .5 of the idle one.
    picks = []
    for alpha in (0.4, 0.5):
        chooser = Chooser(Affinity(form="free_capacity", alpha=alpha), 256)
        held, idle = engines(chooser, a=100, b=0)
        chooser.record(BLOCKS[:256], held, 0.0)
        picks.append(chooser.choose(BLOCKS, [held, idle], 0.0).engine.name)
    assert picks == ["b", "a"]


@pytest.mark.parametrize("policy", ["affinity_load", "longest_prefix", "first_block"])
def test_misses_of_an_idle_pool_take_turns(policy: Any) -> None:
    chooser = Chooser(Affinity(policy=policy), 256)
    pool = engines(chooser, a=0, b=0, c=0)
    picks = [chooser.choose([number], pool, 0.0) for number in range(6)]
    assert [choice.engine.name for choice in picks] == ["a", "b", "c"] * 2
    assert {(choice.result, choice.fallback) for choice in picks} == {("miss", "no_match")}
    assert chooser.choose([], pool, 0.0).result == "no_hash"


# T17
def test_stale_owner_is_never_picked() -> None:
    there = Rehearsal(Coordinator(block_tokens=2), Affinity(policy="longest_prefix"))
    there.engines(b"mp-coord-0", b"mp-coord-1")
    there.clients(b"client")
    there.say(b"client", wire.submit(0, [1, 2, 3, 4], {}))
    (attempt,) = there.door.requests.open.values()
    there.finish(attempt.engine.identity, attempt.server_id)
    there.say(attempt.engine.identity, wire.DISCONNECT)
    there.engines(attempt.engine.identity)
    there.say(b"client", wire.submit(1, [1, 2, 3, 4], {}))
    assert there.door.tally.lookups == {"miss": 1, "stale": 1}
    there.say(b"client", wire.submit(2, [1, 2, 3, 4], {}))
    assert there.door.tally.lookups == {"miss": 1, "stale": 1, "match": 1}
    assert there.door.tally.fallbacks == {("longest_prefix", "no_match"): 2}


def test_each_signal_is_counted_once_per_request() -> None:
    there = Rehearsal(Coordinator(block_tokens=2))
    there.engines(b"a", b"b", b"c")
    there.clients(b"client")
    there.say(b"client", wire.submit(0, [1, 2, 3, 4], {}))
    for _ in range(2):
        (attempt,) = there.door.requests.open.values()
        there.say(attempt.engine.identity, wire.DISCONNECT)
    assert sum(there.door.tally.lookups.values()) == 1
    assert sum(there.door.tally.fallbacks.values()) == 1
    assert there.door.tally.resent == 2


def test_an_unsent_request_leaves_no_affinity_behind() -> None:
    there = Rehearsal(Coordinator(block_tokens=2))
    there.engines(b"a")
    there.clients(b"client")
    there.gone.add(b"a")
    there.say(b"client", wire.submit(0, [1, 2, 3, 4], {}))
    assert there.door.chooser.index.entries == 0
    assert there.door.chooser.index.evicted["rollback"] == 2


# T16
def test_request_larger_than_cap_keeps_its_head() -> None:
    chooser = Chooser(Affinity(policy="longest_prefix", max_blocks=30), 256)
    (engine,) = engines(chooser, a=0)
    chooser.record(BLOCKS, engine, 0.0)
    assert chooser.choose(BLOCKS[:10], [engine], 0.0).matched_blocks == 10
    assert chooser.choose(BLOCKS, [engine], 0.0).matched_blocks == 10


def held_after(seconds: float, *, others: int = 0, **affinity: Any) -> bool:
    """Whether a block is known after this time and after this many other blocks."""
    chooser = Chooser(Affinity(policy="longest_prefix", **affinity), 256)
    (engine,) = engines(chooser, a=0)
    chooser.record([1], engine, 0.0)
    for number in range(others):
        chooser.record([1000 + number], engine, 0.0)
    return chooser.choose([1], [engine], seconds).result == "match"


def test_ttl_boundaries() -> None:
    assert held_after(300.0, ttl_s=300.0, max_blocks=0)
    assert not held_after(450.1, ttl_s=300.0, max_blocks=0)
    assert held_after(86_400.0 * 365, ttl_s=0.0, max_blocks=0)


def test_cap_boundaries() -> None:
    # Three maps of three entries each: a block outlives at least the six that follow, and at most the eight.
    assert held_after(0.0, others=6, ttl_s=0.0, max_blocks=9)
    assert not held_after(0.0, others=9, ttl_s=0.0, max_blocks=9)
    assert held_after(0.0, others=5000, ttl_s=0.0, max_blocks=0)


def test_cap_and_ttl_together_let_the_first_to_be_reached_win() -> None:
    assert held_after(300.0, others=2, ttl_s=300.0, max_blocks=9)
    assert not held_after(10.0, others=9, ttl_s=300.0, max_blocks=9)
    assert not held_after(450.1, others=2, ttl_s=300.0, max_blocks=9)


@pytest.mark.parametrize(("max_blocks", "ttl_s"), [(0, 0.0), (0, 300.0), (30, 0.0), (30, 300.0)])
def test_entries_created_are_present_or_evicted_by_a_counted_reason(max_blocks: int, ttl_s: float) -> None:
    chooser = Chooser(Affinity(max_blocks=max_blocks, ttl_s=ttl_s), 256)
    pool = engines(chooser, a=0, b=0)
    for number in range(400):
        now = number * 5.0
        choice = chooser.choose([number % 90, 1000 + number], pool, now)
        chooser.record([number % 90, 1000 + number], choice.engine, now)
    index = chooser.index
    assert index.created == index.entries + sum(index.evicted.values())
    assert not max_blocks or index.entries <= max_blocks
    assert (index.evicted["cap"] > 0, index.evicted["ttl"] > 0) == (
        bool(max_blocks),
        bool(ttl_s) and not max_blocks,
    )


def test_slots_run_out_without_ending_service() -> None:
    there = Rehearsal(Coordinator(block_tokens=2))
    there.clients(b"client")
    for number in range(600):
        there.engines(b"e%d" % number)
    there.say(b"client", wire.submit(0, [1, 2], {}))
    assert there.door.chooser.index.slots_exhausted == 600 - 512
    assert len(there.door.requests.open) == 1


@pytest.mark.parametrize(
    ("upstream", "affinity"),
    [
        ("longest_prefix", {"form": "free_capacity", "match": "deepest_row"}),
        ("first_prefix_block", {"form": "free_capacity", "match": "first_block"}),
        ("load_balanced", {"policy": "load_balanced"}),
    ],
)
def test_upstream_schedule_is_repeated_pick_by_pick(upstream: str, affinity: dict[str, Any]) -> None:
    pinned = json.loads((Path(__file__).parent / "upstream_schedule.json").read_text(encoding="utf-8"))
    there = Rehearsal(
        Coordinator(block_tokens=4, max_requests=4, schedule_path="x.json"),
        Affinity(alpha=0.9, max_blocks=0, ttl_s=0.0, **affinity),
    )
    there.engines(b"mp-coord-0", b"mp-coord-1", b"mp-coord-2")
    there.clients(b"client")
    opened: list[Attempt] = []
    for number, (what, value) in enumerate(pinned["script"]):
        if what == "finish":
            attempt = opened.pop(value)
            there.finish(attempt.engine.identity, attempt.server_id)
        else:
            there.say(b"client", wire.submit(number, value, {}))
            opened.append(there.door.clients.known[b"client"].open[number].attempt or pytest.fail("not sent"))
    first = there.door.requests.log.records[0].request_id
    document = json.loads(b"".join(schedule_of(there.door, lines=False)))
    prompts = [value for what, value in pinned["script"] if what != "finish"]
    hashes = [len(prompt) // 4 for prompt in prompts]
    if upstream == "first_prefix_block":
        hashes = [min(1, count) for count in hashes]
    assert [
        {key: record[key] for key in ("request_id", "rank_index", "num_hashes")} for record in document["records"]
    ] == [
        {"request_id": first + place, "rank_index": rank, "num_hashes": count}
        for place, (rank, count) in enumerate(zip(pinned["ranks"][upstream], hashes, strict=True))
    ]
    assert (document["policy"], document["data_parallel_size"]) == (upstream, 3)


def test_schedule_dump_in_both_spellings() -> None:
    there = Rehearsal(Coordinator(block_tokens=2, schedule_path="x.jsonl", schedule_max=2))
    there.engines(b"mp-coord-1", b"mp-coord-0")
    there.clients(b"client")
    for number in range(3):
        there.say(b"client", wire.submit(number, [1, 2, 3, 4], {}))
    log = there.door.requests.log
    document = json.loads(b"".join(log.document(2)))
    lines = [json.loads(line) for line in b"".join(log.lines(2)).splitlines()]
    assert {key: document[key] for key in ("policy", "data_parallel_size", "num_requests", "dropped")} == {
        "policy": "affinity_load",
        "data_parallel_size": 2,
        "num_requests": 2,
        "dropped": 1,
    }
    assert [lines[0], lines[1:]] == [
        {key: value for key, value in document.items() if key != "records"},
        document["records"],
    ]
    first = document["records"][0]
    assert first["endpoint"] == f"mp-coord-{first['rank_index']}"
    assert (first["num_hashes"], first["attempt"], first["ts_ms"]) == (2, 1, 1_700_000_000_000)


def test_the_size_of_the_pool_in_a_dump_is_the_largest_it_had() -> None:
    there = Rehearsal(Coordinator(schedule_path="x.json"))
    there.engines(b"a", b"b")
    there.say(b"a", wire.DISCONNECT)
    assert json.loads(b"".join(schedule_of(there.door, lines=False)))["data_parallel_size"] == 2


def test_a_dump_is_written_in_parts_that_join() -> None:
    log = ScheduleLog("load_balanced", 5000)
    for number in range(2500):
        log.add(Scheduled(number, 0, 0, "a", 0, 1, 0))
    numbers = list(range(2500))
    assert [record["request_id"] for record in json.loads(b"".join(log.document(1)))["records"]] == numbers
    assert [json.loads(line)["request_id"] for line in b"".join(log.lines(1)).splitlines()[1:]] == numbers
    assert json.loads(b"".join(ScheduleLog("x", 1).document(0)))["records"] == []


# T43
def test_pick_ignores_insertion_order() -> None:
    picks = set()
    for order in ([b"a", b"b", b"c"], [b"c", b"b", b"a"], [b"b", b"c", b"a"]):
        there = Rehearsal(Coordinator(block_tokens=2))
        there.engines(*order)
        there.clients(b"client")
        for number in range(9):
            there.say(b"client", wire.submit(number, [number % 4, 2], {}))
        picks.add(tuple(attempt.engine.name for attempt in there.door.requests.open.values()))
    assert len(picks) == 1


def test_an_owner_that_takes_no_requests_is_no_match() -> None:
    there = Rehearsal(Coordinator(block_tokens=2), Affinity(policy="longest_prefix"))
    there.engines(b"a", b"b")
    there.clients(b"client")
    there.say(b"client", wire.submit(0, [1, 2], {}))
    (attempt,) = there.door.requests.open.values()
    there.carry(there.door.saturated(attempt.engine.identity, there.now, full=True))
    there.say(b"client", wire.submit(1, [1, 2], {}))
    assert there.door.tally.lookups == {"miss": 2}
    assert there.door.tally.fallbacks == {("longest_prefix", "no_match"): 2}
    assert {len(engine.open) for engine in there.door.roster.live.values()} == {1}
