"""A router in front of simulated engines as processes, and a bare client: what the measurements of failure share."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODEL = "sim"
_UP_S = 15.0


class Rig:
    """Engines e1…en and one router, with a key per tenant."""

    def __init__(self, folder: Path, engines: int, tenants: list[str], arguments: list[str], settings: str) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.keys = {tenant: f"tt-bench-{tenant}-{os.getpid()}" for tenant in tenants}
        self._children: list[subprocess.Popen[bytes]] = []
        ports = [free_port() for _ in range(engines)]
        for number, port in enumerate(ports, 1):
            own = ["--port", str(port), "--model", MODEL, "--name", f"e{number}"]
            self._children.append(_spawn(["engine", *own, *arguments], folder / f"e{number}.log"))
        config = folder / "turnout.toml"
        config.write_text(self._config(folder, ports, settings), encoding="utf-8")
        self.router = _spawn(["serve", "-c", str(config)], folder / "router.log")
        self._children.append(self.router)
        self._wait()

    def stop(self) -> None:
        """End every process."""
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.wait(10)

    def endpoints(self) -> list[dict[str, Any]]:
        """Ask the admin listener."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/x/endpoints", timeout=5) as answer:
            listed: list[dict[str, Any]] = json.loads(answer.read())["endpoints"]
        return listed

    def _config(self, folder: Path, ports: list[int], settings: str) -> str:
        parts = [
            f'[server]\nlisten = "127.0.0.1:{self.port}"\nadmin_listen = "127.0.0.1:{self.admin_port}"',
            f'[ledger]\nurl = "sqlite:///{folder / "ledger.db"}"',
        ]
        for tenant, key in self.keys.items():
            digest = hashlib.sha256(key.encode()).hexdigest()
            parts.append(f'[[key]]\nname = "{tenant}"\ntenant = "{tenant}"\ndigest = "sha256:{digest}"')
        return "\n".join(parts) + "\n" + settings.format(*[f"http://127.0.0.1:{port}" for port in ports])

    def _wait(self) -> None:
        deadline = time.monotonic() + _UP_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if all(not endpoint["unreachable"] and endpoint["context_max"] for endpoint in self.endpoints()):
                    return
            time.sleep(0.05)
        raise SystemExit("the router did not come up; expected every endpoint to answer its first probe")


class Seen:
    """One answer: status, when its head and its first token came, and whether it is whole."""

    __slots__ = ("done", "ended_s", "first_s", "retry_after", "started_s", "status", "tokens")

    def __init__(self) -> None:
        self.started_s = time.perf_counter()
        self.first_s: float | None = None
        self.ended_s = 0.0
        self.status = 0
        self.retry_after = ""
        self.tokens = 0
        self.done = False


async def ask(port: int, key: str, prompt: str, tokens: int, timeout_s: float = 120.0) -> Seen:
    """Stream one chat over a connection of its own."""
    seen = Seen()
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: b\r\nconnection: close\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(head.encode() + body)
                await _read(reader, seen)
            finally:
                writer.close()
    seen.ended_s = time.perf_counter()
    return seen


async def _read(reader: asyncio.StreamReader, seen: Seen) -> None:
    while piece := await reader.read(65536):
        if not seen.status:
            seen.status = int(piece.split(b" ", 2)[1])
            for line in piece.partition(b"\r\n\r\n")[0].split(b"\r\n"):
                if line.startswith(b"retry-after: "):
                    seen.retry_after = line[13:].decode()
        found = piece.count(b'"delta":{"content"')
        if found and seen.first_s is None:
            seen.first_s = time.perf_counter()
        seen.tokens += found
        seen.done = seen.done or b"data: [DONE]" in piece


def percentile(values: list[float], share: float) -> float:
    """The value below which this share lies; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def rig(engines: int, tenants: list[str], arguments: list[str], settings: str) -> Iterator[Rig]:
    """Run a rig for as long as the block lasts. `settings` is TOML with {} for each engine's address in turn."""
    with tempfile.TemporaryDirectory() as folder:
        made = Rig(Path(folder), engines, tenants, arguments, settings)
        try:
            yield made
        finally:
            made.stop()


def _spawn(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen([sys.executable, "-m", "turnout", *arguments], stdout=output, stderr=output)
