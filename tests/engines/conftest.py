"""Real engines, where they are installed: `make test-engines`. Everything that is missing is a skip with its reason.

`TURNOUT_LLAMACPP_PYTHON` and `TURNOUT_VLLM_PYTHON` name interpreters that have the engine; without them this one is
asked. Without `TURNOUT_TEST_ENGINES` nothing here is collected: the usual suite needs no engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from turnout.app import App
from turnout.config.schema import Config

collect_ignore_glob = [] if os.environ.get("TURNOUT_TEST_ENGINES") else ["test_*.py"]


def interpreter(variable: str, module: str) -> str:
    """The interpreter that has the engine; skips the test when there is none."""
    python = os.environ.get(variable, sys.executable)
    asked = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["it cannot be started"])[-1]
        pytest.skip(f"{module} does not import in {python} ({reason}); name another interpreter in {variable}")
    return python


def free_port() -> int:
    """A port that an engine may bind minutes later: not one of those that the system gives away meanwhile."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


@contextmanager
def engine(command: list[str], port: int, up_s: float, log: Path, **environment: str) -> Iterator[None]:
    """Run an engine until its model list answers; its output is in `log`."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment}, start_new_session=True
        )
        try:
            deadline = time.monotonic() + up_s
            while not answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the engine is not up: {log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.2)
            yield
        finally:
            # vLLM computes in processes of its own, which outlive their parent.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class Router:
    """A router on a loop of its own thread."""

    def __init__(self, *endpoints: dict[str, Any]) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        config = {
            "server": {"listen": "127.0.0.1:0", "admin_listen": ""},
            "auth": {"mode": "open"},
            "scheduling": {"policy": "turnout"},
            "ledger": {"url": ""},
            "prefix": {"tokenize": "auto", "tokenize_min_tokens": 64, "tokenize_timeout_ms": 20_000},
            "endpoint": list(endpoints),
        }
        self.app = App(msgspec.convert(config, Config))
        self._run(self.app.start())

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def post(self, path: str, **body: object) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.app.port, timeout=120)
        try:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def close(self) -> None:
        self._run(self.app.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


@contextmanager
def router(*endpoints: dict[str, Any]) -> Iterator[Router]:
    """A router over these endpoints."""
    running = Router(*endpoints)
    try:
        yield running
    finally:
        running.close()


def until(condition: Any, what: str, patience_s: float = 20.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s} s: {what}"
        time.sleep(0.05)
