"""The parts of the demo that need no child process."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import tomllib
from pathlib import Path

import msgspec
import pytest

from turnout.cli.demo import configuration, count_calls, duration_s
from turnout.cli.demo_processes import free_port
from turnout.config.schema import Config


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("7", 7), ("1.5s", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-1s", "1e3s", "10 s", "ten", "10d", "NaN", "inf", "٣s", "9999999s"])
def test_other_durations_are_named_errors(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        duration_s(text)


def test_the_configuration_is_one_the_router_accepts(tmp_path: Path) -> None:
    ledger = tmp_path / 'a "quoted" folder' / "turnout.db"
    text = configuration(8080, 9090, (1, 2, 3), "sha256:" + "0" * 64, ledger)
    config = msgspec.convert(tomllib.loads(text), Config)
    assert config.server.listen == "127.0.0.1:8080"
    assert config.ledger.url == f"sqlite:///{ledger}"
    assert [endpoint.url for endpoint in config.endpoint] == [f"http://127.0.0.1:{port}" for port in (1, 2, 3)]
    assert config.auth.mode == "keys"


def test_a_busy_or_taken_port_is_not_used() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port
    assert free_port(port, port) != port


def test_calls_are_counted_without_touching_the_file(tmp_path: Path) -> None:
    database = tmp_path / "turnout.db"
    assert count_calls(database) is None
    assert not database.exists()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE calls (seq INTEGER)")
        connection.execute("INSERT INTO calls VALUES (1), (2)")
        connection.commit()
    assert count_calls(database) == 2
