"""The door of `turnout serve` and engines of `turnout engine --transport zmq`, as processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from turnout.coordinator.client import CoordinatorClient

PATIENCE_S = 20.0

CONFIG = """
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:{admin}"
[auth]
mode = "open"
[ledger]
url = ""
[coordinator]
enabled = true
bind = "tcp://127.0.0.1:{door}"
schedule_path = "{schedule}"
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_engines(admin: int, number: int) -> None:
    """Wait until so many engines are registered."""
    deadline = time.monotonic() + PATIENCE_S
    registered = -1
    while registered != number and time.monotonic() < deadline:
        time.sleep(0.02)
        with (
            contextlib.suppress(OSError),  # the router may not listen yet
            urllib.request.urlopen(f"http://127.0.0.1:{admin}/x/coordinator", timeout=PATIENCE_S) as page,
        ):
            registered = len(json.load(page)["engines"])
    assert registered == number


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def start(processes: list[subprocess.Popen[bytes]], *arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-m", "turnout", *arguments])
    processes.append(process)
    return process


def test_engines_register_and_serve_and_leave(tmp_path: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    door, admin = free_port(), free_port()
    schedule = tmp_path / "schedule.jsonl"
    config = tmp_path / "turnout.toml"
    config.write_text(CONFIG.format(admin=admin, door=door, schedule=schedule), encoding="utf-8")
    router = start(processes, "serve", "-c", str(config))
    address = f"tcp://127.0.0.1:{door}"
    engines = [
        start(
            processes, "engine", "--transport", "zmq", "--connect", address, "--name", f"mp-coord-{n}", "--speed", "50"
        )
        for n in range(2)
    ]

    await_engines(admin, 2)  # else all questions may be answered before the second one is there

    async def ask() -> None:
        async with CoordinatorClient(address) as client:
            answers = await asyncio.gather(
                *(
                    client.submit(f"question {n}", {"num_tokens_to_generate": 5, "termination_id": -1})
                    for n in range(10)
                )
            )
            assert {(answer["status"], answer["generated_length"]) for answer in answers} == {("COMPLETED", 20)}
            tokens: list[int] = []
            async for update in client.stream("question 0", {"num_tokens_to_generate": 5, "termination_id": -1}):
                tokens += update.get("new_tokens", [])
            assert tokens == answers[0]["generated_tokens"]

    asyncio.run(asyncio.wait_for(ask(), 30))
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=30) as page:
        text = page.read().decode()
    assert "turnout_coordinator_active_engines 2.0" in text
    assert "turnout_coordinator_completed_total 11.0" in text
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/x/coordinator", timeout=30) as page:
        shown = json.load(page)
    assert (shown["address"], shown["ready"], shown["state"]) == (address, True, "running")
    assert [(engine["name"], engine["open"]) for engine in shown["engines"]] == [("mp-coord-0", 0), ("mp-coord-1", 0)]
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/x/coordinator/schedule", timeout=30) as page:
        document = json.load(page)
    assert (document["data_parallel_size"], document["num_requests"], len(document["records"])) == (2, 11, 11)
    engines[0].send_signal(signal.SIGTERM)
    assert engines[0].wait(60) == 0
    router.send_signal(signal.SIGTERM)
    assert router.wait(60) == 0
    assert len(schedule.read_text(encoding="utf-8").splitlines()) == 12
