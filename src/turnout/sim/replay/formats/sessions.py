"""Sessions JSONL: one conversation per line, replayed closed loop (scheduling §6).

The next request starts `think_time` after the answer. Block ids are local to a session, unless equal tool preambles
are taken for the same text.
"""

from __future__ import annotations

from typing import Any

from turnout.sim.replay.reader import Source
from turnout.sim.replay.trace import Keys, Session, Trace, TraceRequest

BLOCK_TOKENS = 512
_TOKENS_MAX = 2**26
_BLOCKS_MAX = 2**24
_FIELDS = 6


def read(source: Source, *, share_tools: bool) -> Trace:
    """Read all lines; `share_tools` lets sessions with equal `tool` share the blocks of that many tokens."""
    keys = Keys()
    sessions: list[Session] = []
    for number, row in source.objects():
        if "id" not in row:
            raise source.bad(number, "id", None, "the session's name")
        tool = source.count(number, "tool", row.get("tool", 0), -1, _TOKENS_MAX)  # -1: unknown
        rows = row.get("reqs")
        if not isinstance(rows, list):
            raise source.bad(number, "reqs", rows, "a list of requests")
        shared = max(0, tool) // BLOCK_TOKENS if share_tools else 0
        place = len(sessions)
        requests = []
        before: Any = None
        for each in rows:
            requests.append(_request(source, number, each, before, keys, place, (tool, shared)))
            before = each
        for request in requests:
            request.session = place + 1
        if requests:
            sessions.append(Session(place, requests))
    return Trace(name=source.name, format="sessions", block_tokens=BLOCK_TOKENS, sessions=sessions)


def _request(
    source: Source, number: int, row: Any, before: Any, keys: Keys, session: int, tool: tuple[int, int]
) -> TraceRequest:
    if not isinstance(row, list) or len(row) < _FIELDS:
        raise source.bad(number, "reqs", row, "[t, in, out, api_time, think_time, runs]")
    prompt = source.count(number, "reqs.in", row[1], 1, _TOKENS_MAX)
    output = source.count(number, "reqs.out", row[2], 0, _TOKENS_MAX)
    if row[4] is not None:
        think_s = source.seconds(number, "reqs.think_time", row[4])
    else:
        think_s = _pause_s(source, number, before, row)
    runs = _joined_runs(source, number, row[5])
    left = prompt // BLOCK_TOKENS  # a partial block has no key
    chain: list[int] = []
    at_root = True
    for first, count in runs:
        taken = min(count, left)
        left -= taken
        own = first
        if at_root and first == 0 and tool[1]:
            common = min(taken, tool[1])
            keys.extend(chain, ("tool", tool[0]), 0, common)
            own, taken = first + common, taken - common
        at_root = False
        if taken > 0:
            keys.extend(chain, session, own, taken)
    return TraceRequest(prompt_tokens=prompt, output_tokens=max(1, output), keys=chain, think_s=think_s)


def _pause_s(source: Source, number: int, before: Any, row: Any) -> float:
    """What stands for an unknown think time: from the end of the call before, as far as its duration is known."""
    if before is None:
        return 0.0
    started, earlier = (source.seconds(number, "reqs.t", each[0]) for each in (row, before))
    took = 0.0 if before[3] is None else source.seconds(number, "reqs.api_time", before[3])
    return max(0.0, started - earlier - took)


def _joined_runs(source: Source, number: int, runs: Any) -> list[tuple[int, int]]:
    """Join runs that follow on one another: one prefix must always be cut in the same way."""
    if not isinstance(runs, list):
        raise source.bad(number, "reqs.runs", runs, "a list of [first_block, count]")
    joined: list[tuple[int, int]] = []
    for run in runs:
        if not isinstance(run, list) or len(run) != 2:  # noqa: PLR2004 - first and count
            raise source.bad(number, "reqs.runs", run, "[first_block, count]")
        first = source.count(number, "reqs.runs.first_block", run[0], 0, _BLOCKS_MAX)
        count = source.count(number, "reqs.runs.count", run[1], 0, _BLOCKS_MAX)
        if joined and sum(joined[-1]) == first:
            joined[-1] = (joined[-1][0], joined[-1][1] + count)
        else:
            joined.append((first, count))
    return joined
