from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from turnout.sim.replay.reader import read
from turnout.sim.replay.trace import BadTrace, Trace

MOONCAKE = [
    {"timestamp": 0, "input_length": 1000, "output_length": 10, "hash_ids": [0, 1]},
    {"timestamp": 0, "input_length": 1024, "output_length": 20, "hash_ids": [0, 2]},
    {"timestamp": 3000, "input_length": 1536, "output_length": 30, "hash_ids": [0, 2, 7]},
]
SESSION = {"id": "a", "tool": 1030, "sys": 9, "reqs": [[0.0, 1600, 5, 2.0, 0.0, [[0, 4]]], [9.0, 2100, 6, 3.0, 4.5, [[0, 3], [3, 2]]]]}  # fmt: skip
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)


def test_records_of_one_stamp_are_spread_to_the_next(tmp_path: Path) -> None:
    trace = _mooncake(tmp_path)
    assert [request.at_s for request in trace.requests] == [0.0, 1.5, 3.0]


def test_no_spread_keeps_them_together(tmp_path: Path) -> None:
    trace = read([_lines(tmp_path, MOONCAKE)], spread=False)
    assert [request.at_s for request in trace.requests] == [0.0, 0.0, 3.0]


def test_equal_ids_are_equal_keys_and_a_partial_block_has_none(tmp_path: Path) -> None:
    one, two, three = (request.keys for request in _mooncake(tmp_path).requests)
    assert (len(one), len(two), len(three)) == (1, 2, 3)
    assert three[:2] == two
    assert one[0] == two[0]


def test_an_id_behind_another_prefix_is_another_block(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [1, 9]},
        {"timestamp": 1, "input_length": 1024, "output_length": 1, "hash_ids": [2, 9]},
    ]
    one, two = (request.keys for request in read([_lines(tmp_path, rows)]).requests)
    assert not set(one) & set(two)


def test_sessions_join_runs_and_keep_think_time(tmp_path: Path) -> None:
    trace = read([_lines(tmp_path, [SESSION])])
    first, second = trace.sessions[0].requests
    assert trace.closed
    assert (second.think_s, second.prompt_tokens, second.output_tokens) == (4.5, 2100, 6)
    assert second.keys[:3] == first.keys
    assert len(second.keys) == 4


def test_sessions_share_no_blocks_unless_tools_are_shared(tmp_path: Path) -> None:
    file = _lines(tmp_path, [SESSION, {**SESSION, "id": "b"}, {**SESSION, "id": "c", "tool": 600}])
    apart = [session.requests[0].keys for session in read([file]).sessions]
    assert not set(apart[0]) & set(apart[1])
    shared = [session.requests[0].keys for session in read([file], share_tools=True).sessions]
    assert shared[0][:2] == shared[1][:2]
    assert shared[0][2:] != shared[1][2:]
    assert not set(shared[0]) & set(shared[2])


def test_unknown_think_time_is_the_pause_between_the_calls(tmp_path: Path) -> None:
    row = {**SESSION, "reqs": [SESSION["reqs"][0], [9.0, 2100, 6, None, None, [[0, 5]]]]}  # type: ignore[index]
    assert read([_lines(tmp_path, [row])]).sessions[0].requests[1].think_s == 7.0


def test_azure_rows_have_no_keys(tmp_path: Path) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(AZURE)
    trace = read([file])
    assert [request.keys for request in trace.requests] == [[], []]
    assert trace.requests[1].at_s == pytest.approx(4.314579)
    assert (trace.requests[1].prompt_tokens, trace.requests[1].output_tokens) == (396, 109)


def test_ledger_export_is_a_trace_with_inferred_prefixes(tmp_path: Path) -> None:
    rows = [
        _call("2", 2000, session_id="s", tokens_in=640),
        _call("1", 1000, session_id="s", tokens_in=320),
        _call("3", 3000, tokens_in=None, est_tokens=None),
        _call("4", 4000, tokens_in=300, tokens_cached=130),
        _call("5", 5000, tokens_in=500, tokens_cached=128),
    ]
    trace = read([_lines(tmp_path, rows)])
    first, second, third, fourth = trace.requests
    assert [request.at_s for request in trace.requests] == [0.0, 1.0, 3.0, 4.0]
    assert second.keys[:5] == first.keys
    assert third.keys[:2] == fourth.keys[:2]
    assert third.keys[2:] != fourth.keys[2:]
    assert trace.notes[1].startswith("1 calls")


def test_a_shorter_prompt_of_a_session_shares_what_was_cached(tmp_path: Path) -> None:
    rows = [
        _call("1", 1000, session_id="s", tokens_in=640),
        _call("2", 2000, session_id="s", tokens_in=320, tokens_cached=128),
    ]
    first, second = read([_lines(tmp_path, rows)]).requests
    assert second.keys[:2] == first.keys[:2]
    assert not set(second.keys[2:]) & set(first.keys)


def test_gzip_is_recognised_by_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in MOONCAKE).encode()))
    assert read([file]).size == 3


def test_two_files_share_no_blocks_and_follow_one_another(tmp_path: Path) -> None:
    file = _lines(tmp_path, MOONCAKE)
    trace = read([file, file])
    assert [request.at_s for request in trace.requests] == [0.0, 1.5, 3.0, 3.0, 4.5, 6.0]
    assert not set(trace.requests[0].keys) & set(trace.requests[3].keys)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (['{"timestamp": 5, "input_length": 9, "output_length": 1, "hash_ids": [1]}', '{"timestamp": 4, "input_length": 9, "output_length": 1, "hash_ids": [1]}'], "line 2: timestamp is 4, expected at least 5"),
        (['{"timestamp": 5, "input_length": 600, "output_length": 1, "hash_ids": [1]}'], "line 1: hash_ids is 1, expected 2 ids"),
        (['{"timestamp": 5, "input_length": "x", "output_length": 1, "hash_ids": [1]}'], "line 1: input_length is 'x'"),
        (['{"timestamp": 5, "input_length": 5, "output_length": 1, "hash_ids": [1]}', "{"], "line 2: "),
        (['{"timestamp": 5, "input_length": 5, "output_length": 1, "hash_ids": [1]}', "[]"], "line 2: a JSON list"),
        (['{"id": "a", "reqs": [[0, 5, 1, 1, -1, [[0, 1]]]]}'], "line 1: reqs.think_time is -1"),
        (['{"id": "a", "reqs": [[0, 5, 1, 1, 1, [[0]]]]}'], "line 1: reqs.runs is"),
        (['{"other": 1}'], "line 1: no known trace"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46.6,a,44"], "line 2: ContextTokens is 'a'"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "yesterday,1,44"], "line 2: TIMESTAMP is 'yesterday'"),
        (['{"call_id": "1", "started_at_ms": "x"}'], "line 1: started_at_ms is 'x'"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, rows: list[str], complaint: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(rows))
    with pytest.raises(BadTrace, match="bad.jsonl " + complaint.split(":", maxsplit=1)[0]) as raised:
        read([file])
    assert complaint in str(raised.value)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "none.jsonl"
    file.write_text("")
    with pytest.raises(BadTrace, match="empty"):
        read([file])


def _mooncake(tmp_path: Path) -> Trace:
    return read([_lines(tmp_path, MOONCAKE)])


def _lines(tmp_path: Path, rows: list[dict[str, object]]) -> Path:
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return file


def _call(name: str, started: int, **fields: object) -> dict[str, object]:
    return {"call_id": name, "started_at_ms": started, "tenant": "t", "tokens_out": 7, "selected_model": "m", **fields}
