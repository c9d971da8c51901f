"""The verb on files of a few lines: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from turnout.cli.verbs import app

ROWS = [
    {"timestamp": 300 * place, "input_length": 1200 + place, "output_length": 20, "hash_ids": [place % 4, 90 + place % 4, 200 + place]}
    for place in range(60)
]  # fmt: skip


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    return file


def test_a_report_has_figures_differences_and_is_equal_to_the_byte(trace: Path) -> None:
    options = ["--policy", "turnout,least_busy", "--seeds", "2", "--endpoints", "2", "--jobs", "1", "--json", "-"]
    texts = [_run(str(trace), *options) for _ in range(2)]
    assert texts[0] == texts[1]
    report: dict[str, Any] = json.loads(texts[0])
    assert list(report["policies"]) == ["turnout", "least_busy"]
    assert list(report["policies"]["turnout"]["seeds"]) == ["0", "1"]
    figures = report["policies"]["turnout"]["mean"]
    assert figures["requests"] == 60
    assert figures["slo_share"] == 1.0
    assert 0 < figures["hit_rate"] <= figures["hit_rate_unlimited"]
    assert report["differences"]["least_busy - turnout"]["slo_share"]["pairs"] == 120


def test_processes_change_nothing(trace: Path) -> None:
    options = ["--policy", "turnout", "--seeds", "2", "--endpoints", "2", "--json", "-"]
    assert _run(str(trace), *options, "--jobs", "2") == _run(str(trace), *options, "--jobs", "1")


def test_capacity_is_searched_and_drawn(trace: Path, tmp_path: Path) -> None:
    picture = tmp_path / "capacity.svg"
    text = _run(
        str(trace), "--policy", "turnout,random", "--seeds", "1", "--endpoints", "1", "--jobs", "1", "--capacity",
        "--width", "0.2", "--engine", "70b", "--json", "-", "--plot", str(picture),
    )  # fmt: skip
    for entry in json.loads(text)["policies"].values():
        found = entry["capacity"]
        assert found["meets"] <= found["capacity"] <= found["fails"] <= found["meets"] * 1.2
    assert ET.parse(picture).getroot().tag.endswith("svg")


def test_the_table_names_policies_and_notes(trace: Path) -> None:
    text = _run(str(trace), "--policy", "turnout,least_busy", "--seeds", "1", "--endpoints", "2", "--jobs", "1")
    assert "paired differences" in text
    assert "least_busy" in text


def test_a_bad_trace_ends_with_status_2_and_the_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"timestamp": "x", "hash_ids": []}')
    result = CliRunner().invoke(app, ["replay", str(file)])
    assert result.exit_code == 2
    assert "bad.jsonl line 1: timestamp is 'x'" in result.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--policy", "best"], "'best'"),
        (["--engine", "9t"], "profile = '9t'"),
        (["--fault", "dead:9:1:2"], "engine = 9"),
        (["--load", "0"], "load = 0"),
    ],
)
def test_wrong_options_are_named(trace: Path, options: list[str], complaint: str) -> None:
    result = CliRunner().invoke(app, ["replay", str(trace), *options], env={"TERM": "dumb", "COLUMNS": "200"})
    assert result.exit_code == 2
    assert complaint in result.stderr


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["replay", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.stderr
    return result.stdout
