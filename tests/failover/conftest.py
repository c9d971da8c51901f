"""The sixteen failover scenarios on real sockets (resilience §13): two engines, one router, everything at once.

Each scenario has endpoints and a model of its own, so that breakers and cooldowns do not meet; its faults on engine A
strike only its own requests. Timeouts are a tenth of the defaults unless TURNOUT_FAILOVER_FULL is set: then they are the
defaults, and the whole takes about a minute and a half. Retry-After stays as it is, since it is in whole seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCALE = 1.0 if os.environ.get("TURNOUT_FAILOVER_FULL") else 0.2
TOKENS = 60
CONTENT = "Tell me a story that has exactly sixty words, and then stop."
S15_REQUESTS, S15_EVERY_S, S15_DOWN_S, S15_BACK_S = 20, 4.0, 60.0, 30.0


class Answer:
    """One answer as its client saw it."""

    def __init__(self, raw: bytes, took_s: float, arrivals: list[float]) -> None:
        self.raw = raw
        self.took_s = took_s
        head, _, rest = raw.partition(b"\r\n\r\n")
        self.status = int(head.split()[1]) if head else 0
        self.headers = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:])
        chunked = self.headers.get("transfer-encoding") == "chunked"
        self.terminated = rest.endswith(b"0\r\n\r\n") if chunked else True
        self.body = _dechunked(rest) if chunked else rest
        self.arrivals = arrivals
        self.events = [block for block in self.body.split(b"\n\n") if block.startswith(b"data: ")]
        self.done = self.events.count(b"data: [DONE]")
        self.chunks: list[dict[str, Any]] = []
        for event in self.events:
            if event != b"data: [DONE]":
                self.chunks.append(json.loads(event[6:]))

    @property
    def streamed(self) -> bool:
        return "event-stream" in self.headers.get("content-type", "")

    @property
    def text(self) -> str:
        if not self.streamed:
            return str(json.loads(self.body)["choices"][0]["message"]["content"])
        return "".join(
            choice["delta"].get("content") or "" for chunk in self.chunks for choice in chunk.get("choices", [])
        )

    @property
    def finished(self) -> bool:
        if not self.streamed:
            return self.status == 200
        return any(choice.get("finish_reason") for chunk in self.chunks for choice in chunk.get("choices", []))

    @property
    def usage(self) -> dict[str, Any] | None:
        found = [chunk["usage"] for chunk in self.chunks if chunk.get("usage")]
        return found[-1] if self.streamed and found else (None if self.streamed else json.loads(self.body).get("usage"))

    @property
    def error(self) -> dict[str, Any] | None:
        if self.streamed:
            return next((chunk["error"] for chunk in self.chunks if "error" in chunk), None)
        error: dict[str, Any] | None = json.loads(self.body).get("error")
        return error


def _dechunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        count = int(size or b"0", 16)
        if not count:
            break
        body += rest[:count]
        data = rest[count + 2 :]
    return body


class Played:
    """One scenario in one mode: its answers, and what the engines received."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.answers: list[Answer] = []
        self.on: dict[str, list[float]] = {"a": [], "b": []}
        self.recovered_after_s: float | None = None

    def note(self, answer: Answer, armed: float) -> None:
        """Keep an answer, and when A gave the first one after its recovery."""
        self.answers.append(answer)
        if answer.headers.get("x-turnout-endpoint", "").startswith("a") and self.recovered_after_s is None:
            self.recovered_after_s = answer.arrivals[0] - armed - S15_DOWN_S * SCALE

    @property
    def answer(self) -> Answer:
        return self.answers[0]


class Failover:
    """Plays scenarios: `FAULTS` on engine A (and B), in a mode."""

    SCALE = SCALE

    def __init__(self, processes: Any, folder: Path, names: list[str]) -> None:
        self._processes = processes
        self.a = processes.engines(1, "--speed", "4", "--mean-output-tokens", "100000")[0]
        self.b = processes.engines(1, "--speed", "4", "--mean-output-tokens", "100000", "--max-model-len", "262144")[0]
        self.port = _free_port()
        self.admin = _free_port()
        self._config = folder / "turnout.toml"
        self.database = folder / "ledger.db"
        self._config.write_text(self._settings(names))
        self._log = folder / "router.log"

    def start(self) -> None:
        command = [sys.executable, "-m", "turnout", "serve", "-c", str(self._config)]
        with self._log.open("wb") as log:
            self.child = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        assert self._processes.eventually(self._is_up), self._log.read_text()

    def stop(self) -> int:
        self.child.terminate()
        return self.child.wait(15)

    def words(self) -> str:
        return self._log.read_text(errors="replace")

    def endpoint(self, name: str) -> Any:
        listed = self._processes.fetch(f"http://127.0.0.1:{self.admin}/x/endpoints")["endpoints"]
        return next(endpoint for endpoint in listed if endpoint["endpoint"] == name)

    async def play(self, name: str, faults: list[dict[str, Any]], mode: str) -> Played:
        """Arm the faults of one scenario and ask."""
        played = Played(name)
        for fault in faults:
            fields = {"match": f'"{name}"', **fault}
            engine = self.b if fields.pop("on", "a") == "b" else self.a
            kind = fields.pop("kind")
            await asyncio.to_thread(engine.fault, kind, **fields)
        if name.startswith("S15"):
            armed = time.monotonic()
            await self._repeat(played, name, mode, armed)
        else:
            played.answers.append(await self.ask(name, mode, f"{name}.0"))
        return played

    async def _repeat(self, played: Played, name: str, mode: str, armed: float) -> None:
        pending = []
        for number in range(S15_REQUESTS):
            await asyncio.sleep(max(0.0, armed + number * S15_EVERY_S * SCALE - time.monotonic()))
            pending.append(asyncio.create_task(self.ask(name, mode, f"{name}.{number}")))
        for task in pending:
            played.note(await task, armed)
        # Beside other load a slot can be missed by milliseconds: ask on until A answers or its time is over.
        number = S15_REQUESTS
        while played.recovered_after_s is None and time.monotonic() < armed + (S15_DOWN_S + S15_BACK_S) * SCALE:
            await asyncio.sleep(max(0.0, armed + number * S15_EVERY_S * SCALE - time.monotonic()))
            played.note(await self.ask(name, mode, f"{name}.{number}"), armed)
            number += 1

    async def ask(self, model: str, mode: str, request_id: str) -> Answer:
        """Ask over a connection of its own and read to its end."""
        body = json.dumps(
            {
                "model": model,
                "messages": [{"role": "user", "content": CONTENT}],
                "max_tokens": TOKENS,
                "ignore_eos": True,
                "temperature": 0,
                "user": model,
                **({} if mode == "whole" else {"stream": True, "stream_options": {"include_usage": True}}),
            },
            separators=(",", ":"),
        ).encode()
        safety = f"x-turnout-stream-safety: {mode}\r\n" if mode in {"guarded", "buffered"} else ""
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
            f"x-request-id: {request_id}\r\n{safety}content-length: {len(body)}\r\n\r\n"
        )
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head.encode() + body)
        raw, arrivals = b"", []
        try:
            while piece := await reader.read(65536):
                raw += piece
                arrivals.append(time.monotonic())
        except ConnectionResetError:
            pass
        finally:
            writer.close()
        return Answer(raw, time.monotonic() - began, arrivals)

    def received(self) -> dict[str, dict[str, int]]:
        """Requests per engine and request id."""
        found: dict[str, dict[str, int]] = {}
        for name, engine in (("a", self.a), ("b", self.b)):
            counts: dict[str, int] = {}
            for request in engine.state["requests"]:
                counts[request["x-request-id"]] = counts.get(request["x-request-id"], 0) + 1
            found[name] = counts
        return found

    def _is_up(self) -> bool:
        try:
            listed = self._processes.fetch(f"http://127.0.0.1:{self.admin}/x/endpoints")["endpoints"]
        except OSError:
            return False
        return all(endpoint["context_max"] for endpoint in listed)

    def _settings(self, names: list[str]) -> str:
        def seconds(value: float) -> float:
            return round(value * SCALE, 3)

        lines = [
            f'[server]\nlisten = "127.0.0.1:{self.port}"\nadmin_listen = "127.0.0.1:{self.admin}"',
            '[auth]\nmode = "open"',
            f'[ledger]\nurl = "sqlite:///{self.database}"',
            f"[timeout]\nfirst_token_s = {seconds(60)}\nfirst_token_failover_s = {seconds(10)}\nstall_s = {seconds(20)}",
            f"content_stall_s = {seconds(120)}\nresponse_min_s = {seconds(60)}\nresponse_max_s = {seconds(300)}",
            f"[breaker]\nopen_s = {seconds(5)}\nopen_max_s = {seconds(20)}\nslow_start_s = {seconds(30)}",
            "[probe]\ninterval_s = 60",
        ]
        for name in names:
            for letter, engine in (("a", self.a), ("b", self.b)):
                lines.append(f'[[endpoint]]\nname = "{letter}-{name}"\nurl = "{engine.url}"\nmodels = ["{name}"]')
                lines.append(f'served_as = {{"{name}" = "sim"}}')
                if letter == "b":
                    lines.append("standby = true")
                    if name.startswith("S14"):
                        lines.append("continuation = true")
        return "\n".join(lines) + "\n"


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="session")
def failover() -> type[Failover]:
    return Failover


@pytest.fixture(scope="session")
def in_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failover")
