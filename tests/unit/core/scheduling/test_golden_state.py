"""The golden state of scheduling §5.1: T = 8192, block 16, three endpoints; every policy's figures and pick."""

import random
from collections.abc import Callable

import pytest

from turnout.core import options
from turnout.core.fleet.active_blocks import ActiveBlocks
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.fleet.report import Report
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision
from turnout.core.scheduling.explain import explain, recompute
from turnout.core.scheduling.pipeline import schedule

KEYS = list(range(1000, 1512))
STATE = {
    "A": (6144, 12, 2, 0.85, 40_960, 4000),
    "B": (0, 2, 0, 0.20, 0, 600),
    "C": (2048, 5, 0, 0.45, 1024, 1500),
}


def golden(policy: str, **scheduling: object) -> tuple[Fleet, Pool]:
    given = options.Scheduling(policy=policy, **scheduling)  # type: ignore[arg-type]
    fleet = Fleet(given, options.Prefix(), options.Breaker())
    for name, (matched, running, waiting, usage, pending, decode_blocks) in STATE.items():
        state = fleet.add(options.Endpoint(name=name, url="http://127.0.0.1:1", models=["m"]), 0.0)
        sent = state.sent(0.0)
        report = Report(running=running, waiting=waiting, kv_usage_ratio=usage, kv_capacity_tokens=100_000)
        fleet.observed(state, sent, report)
        state.pending_prefill_tokens = pending
        state.active_blocks = ActiveBlocks()
        state.active_blocks.add([], decode_blocks)
        if matched:
            fleet.index.record(KEYS[: matched // 16], state.bit, 0.0)
    pool = fleet.pool("m")
    assert pool is not None
    return fleet, pool


def decide(policy: str, session: int = 0, **scheduling: object) -> Decision:
    fleet, pool = golden(policy, **scheduling)
    if policy == "sglang_cache_aware":
        owners = pool.owners()
        for key in KEYS[:384]:
            owners.put(key, fleet.endpoints["A"].bit)
    ask = Ask("m", KEYS, 8192, 8000, block_tokens=16.0, session=session)
    return schedule(ask, pool, fleet, 0.5, random.Random(3))


def rounded(decision: Decision) -> list[float]:
    return [round(total, 4) for total in decision.totals]


def busy_of(decision: Decision) -> list[float]:
    return decision.busy


@pytest.mark.parametrize(
    ("policy", "figures", "of", "pick"),
    [
        ("least_busy", [14, 2, 5], busy_of, "B"),
        ("memory_aware", [15_000, 80_000, 55_000], rounded, "B"),
        ("prompt_length_aware", [15_000, 80_000, 55_000], rounded, "B"),
        ("longest_prefix", [384, 0, 128], lambda decision: decision.depths, "A"),
        ("first_block", [384, 0, 128], lambda decision: decision.depths, "C"),
        ("affinity_load", [-0.25, 0.7143, 0.5357], rounded, "B"),
        ("sglang_cache_aware", [0.75, 0, 0], rounded, "A"),
        ("aibrix_prefix", [12, 2, 5], rounded, "B"),
        ("llm_d_default", [2.55, 3.6, 3.85], rounded, "C"),
        ("dynamo_cost", [6688, 1112, 1948], rounded, "B"),
    ],
)
def test_golden_state(policy: str, figures: list[float], of: Callable[[Decision], list[float]], pick: str) -> None:
    decision = decide(policy)
    assert decision.picked is not None
    assert (list(of(decision)), decision.picked.name) == (figures, pick)


def test_golden_state_of_the_free_capacity_form() -> None:
    decision = decide("affinity_load", affinity_form="free_capacity")
    assert decision.picked is not None
    assert (rounded(decision), decision.picked.name) == ([0.8477, 0.4961, 0.6152], "A")


@pytest.mark.parametrize(("match", "shares"), [("first_block", [1, 0, 1]), ("deepest_row", [0.75, 0, 0])])
def test_affinity_counts_the_blocks_it_is_told_to(match: str, shares: list[float]) -> None:
    decision = decide("affinity_load", affinity_match=match)
    assert [row[0] for row in decision.rows] == shares


def test_turnout_weighs_seconds() -> None:
    """Own dispatches only: A must prefill 2662 tokens, B all 8192, C 6349; each already serves some requests."""
    decision = decide("turnout")
    columns = [row[0] for row in decision.rows]
    assert [round(uncached) for uncached in columns] == [8192 - round(0.9 * 6144), 8192, 8192 - round(0.9 * 2048)]
    assert decision.picked is not None
    assert decision.picked.name == "A"


@pytest.mark.parametrize("session", [0, 77])
def test_consistent_hash_stays_within_its_bound(session: int) -> None:
    decision = decide("consistent_hash", session=session)
    assert decision.picked is not None
    # ceil(1.25 · (21 + 1) / 3) = 10: A with 14 is out, whatever its rank.
    assert decision.picked.name in {"B", "C"}
    document = explain(decision, "r")
    assert recompute(document)[0] == decision.picked.name
