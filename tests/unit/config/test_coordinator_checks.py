"""Rules of the coordinator door that span several fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnout.config.errors import ConfigError
from turnout.config.load import load

HEAD = '[auth]\nmode = "open"\n[coordinator]\nenabled = true\n'


def problems(tmp_path: Path, lines: str) -> str:
    path = tmp_path / "turnout.toml"
    path.write_text(HEAD + lines, encoding="utf-8")
    try:
        load(path, {})
    except ConfigError as error:
        return str(error)
    return ""


def test_a_door_alone_needs_no_endpoint(tmp_path: Path) -> None:
    assert problems(tmp_path, "") == ""


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ('bind = "tcp://0.0.0.0:5600"', "coordinator.bind"),
        ('bind = "tcp://*:5600"', "coordinator.bind"),
        ('bind = "ipc:///tmp/x"', "coordinator.bind"),
        ('bind = "tcp://127.0.0.1:99999"', "coordinator.bind"),
        (f'curve_clients = ["{"k" * 40}"]', "coordinator.curve_secret_file"),
        ("deterministic = true", "coordinator.expected_engines"),
        ('model = "m"', "coordinator.tokenizer"),
        ('tokenizer = "gpt2"', "coordinator.tokenizer"),
        ("empty_wait_s = 0", "coordinator.empty_wait_s"),
        ('[affinity]\npolicy = "best"', "affinity.policy"),
        ("[affinity]\nalpha = 1.5", "affinity.alpha"),
        ("[affinity]\nmax_blocks = -1", "affinity.max_blocks"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, lines: str, named: str) -> None:
    assert named in problems(tmp_path, lines)


@pytest.mark.parametrize(
    "lines",
    [
        'bind = "tcp://0.0.0.0:5600"\nallow_remote = true',
        'bind = "tcp://127.0.0.1:*"',
        'bind = "tcp://[::1]:5600"',
        'model = "m"\ntokenizer = "bytes"',
        "[affinity]\nttl_s = 0\nmax_blocks = 0",
    ],
)
def test_what_is_right_passes(tmp_path: Path, lines: str) -> None:
    assert problems(tmp_path, lines) == ""
