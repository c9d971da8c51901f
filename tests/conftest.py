"""Real processes: `turnout engine` and `turnout serve` as a user starts them, on loopback, each with its own ledger."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# CI tries the same examples every time, so that a red run is about the change. `TURNOUT_EXPLORE=1` tries others, and
# what that finds becomes an `@example`.
settings.register_profile("turnout", derandomize="TURNOUT_EXPLORE" not in os.environ, database=None)
settings.load_profile("turnout")

PATIENCE_S = 30.0
HANGS_S = 120.0
"""A process that lives and has not done by now what it must do hangs; before that it may just be slow."""
MODEL = "sim"


def eventually(holds: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Wait until something is true of another process, and return it; false when it never was."""
    deadline = time.monotonic() + patience_s
    while not (value := holds()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def fetch(url: str, method: str = "GET", document: object = None) -> Any:
    """One request outside the router; the decoded JSON, or the text of what is not JSON."""
    body = None if document is None else json.dumps(document).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, method=method), timeout=PATIENCE_S) as answered:
        text = answered.read().decode()
    return json.loads(text) if "json" in answered.headers["content-type"] else text


class Process:
    """One `turnout` process."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "turnout", *self._arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def stop(self) -> int:
        """End it if it runs, and return its exit code."""
        if self.child.poll() is None:
            self.child.terminate()
        try:
            return self.child.wait(HANGS_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()

    def words(self) -> str:
        return self.log.read_text(errors="replace")

    def is_up(self) -> bool:
        """Whether it serves."""
        raise NotImplementedError

    def wait_until_up(self) -> None:
        """Wait until it serves, however long that takes here; only one that ended or hangs fails."""
        eventually(lambda: self.child.poll() is not None or self.is_up(), HANGS_S)
        assert self.child.poll() is None, f"it ended with {self.child.poll()}: {self.words()}"
        assert self.is_up(), f"it hangs: {self.words()}"


class SimEngine(Process):
    """A simulated engine with its control door."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.name, self.port = name, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        own = ("--port", str(self.port), "--model", MODEL, "--name", name)
        super().__init__(folder / f"{name}.log", "engine", *own, *arguments)

    @property
    def state(self) -> Any:
        return fetch(self.url + "/sim/state")

    def fault(self, kind: str, **settings: object) -> None:
        fetch(self.url + "/sim/faults", "POST", {"kind": kind, **settings})

    def heal(self) -> None:
        fetch(self.url + "/sim/faults", "DELETE")

    def is_up(self) -> bool:
        try:
            fetch(self.url + "/version")
        except OSError:
            return False
        return True


class Serve(Process):
    """A router with its admin listener and its ledger."""

    def __init__(
        self, folder: Path, engines: list[SimEngine], key: str | dict[str, Any], tables: dict[str, dict[str, Any]]
    ) -> None:
        self.engines = engines
        self.port, self.admin_port = free_port(), free_port()
        self.database = folder / "ledger.db"
        settings: dict[str, dict[str, Any]] = {
            "server": {"listen": f"127.0.0.1:{self.port}", "admin_listen": f"127.0.0.1:{self.admin_port}"},
            "auth": {"mode": "keys" if key else "open"},
            "ledger": {"url": f"sqlite:///{self.database}"},
            **tables,
        }
        lines = [_table(f"[{name}]", values) for name, values in settings.items()]
        lines += [_table("[[endpoint]]", {"name": e.name, "url": e.url, "models": [MODEL]}) for e in engines]
        if key:
            given = {"digest": key} if isinstance(key, str) else key
            lines.append(_table("[[key]]", {"name": "one", "tenant": "tenant-one", **given}))
        config = folder / "turnout.toml"
        config.write_text("\n".join(lines))
        super().__init__(folder / "router.log", "serve", "-c", str(config))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def admin(self, path: str) -> Any:
        return fetch(f"http://127.0.0.1:{self.admin_port}{path}")

    def is_up(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S):
                pass
            self.admin("/ready")
            endpoints = self.admin("/x/endpoints")["endpoints"]
        except OSError:
            return False
        return all(not endpoint["unreachable"] for endpoint in endpoints)

    def endpoint(self, name: str) -> Any:
        return next(e for e in self.admin("/x/endpoints")["endpoints"] if e["endpoint"] == name)

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Read the ledger as anybody could: with SQLite alone. Empty until the writer has made its tables."""
        if not self.database.exists():
            return []
        database = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=PATIENCE_S)
        try:
            database.row_factory = sqlite3.Row
            made = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'decisions'").fetchone()
            return [dict(row) for row in database.execute(query, values)] if made else []
        finally:
            database.close()

    def call(self, decision: str) -> dict[str, Any]:
        """The one row of a call, once it is written."""
        found = eventually(lambda: self.rows("SELECT * FROM calls WHERE call_id = ?", decision))
        assert len(found) == 1, f"{len(found)} rows for {decision}"
        row: dict[str, Any] = found[0]
        return row

    def attempts(self, decision: str) -> list[dict[str, Any]]:
        """The attempts of a call, once it is written."""
        self.call(decision)
        query = "SELECT * FROM attempts LEFT JOIN routes USING (route_id) WHERE call_id = ? ORDER BY attempt_no"
        return self.rows(query, decision)


def _table(head: str, values: dict[str, Any]) -> str:
    return "\n".join([head, *(f"{name} = {json.dumps(value)}" for name, value in values.items()), ""])


class Processes:
    """Starts processes and ends them all."""

    eventually = staticmethod(eventually)
    fetch = staticmethod(fetch)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Process] = []

    def engines(self, count: int, *arguments: str) -> list[SimEngine]:
        folder = self._own_folder()
        started = [SimEngine(folder, f"e{number}", *arguments) for number in range(1, count + 1)]
        self._running += started
        for engine in started:
            engine.wait_until_up()
        return started

    def serve(self, engines: list[SimEngine], *, key: str | dict[str, Any] = "", **tables: dict[str, Any]) -> Serve:
        """Start a router; a key is its digest, or what its table has beside name and tenant."""
        router = Serve(self._own_folder(), engines, key, tables)
        self._running.append(router)
        router.wait_until_up()
        return router

    def stop(self) -> None:
        for process in reversed(self._running):
            process.stop()

    def _own_folder(self) -> Path:
        folder = self._folder / str(len(self._running))
        folder.mkdir()
        return folder


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Start engines and routers: `processes.serve(processes.engines(2), timeout={…})`."""
    processes = Processes(tmp_path)
    yield processes
    processes.stop()


@pytest.fixture(scope="session")
def shared_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """As `processes`, until the end of all tests."""
    processes = Processes(tmp_path_factory.mktemp("processes"))
    yield processes
    processes.stop()
