"""`turnout demo`: three simulated engines, the router, a short workload, and what came of it. Leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from turnout.cli.demo_processes import Child, StartError, end, free_port
from turnout.cli.demo_report import endpoint_table, explain_table, figure_lines, snippets, summary
from turnout.cli.demo_workload import Client, Sent, conversations, converse

HOST = "127.0.0.1"
MODEL = "sim-8b"
ENGINES = ("engine-a", "engine-b", "engine-c")
ENGINE_SEED = 7
ADMIN_PORT = 9090
STOP_RESERVE_S = 1.0
"""Time kept back from `--for` to end the children."""
REPORT_RESERVE_S = 0.5
LEDGER_WAIT_S = 1.0
STEP_LINES = 6
"""Without a terminal one progress line per this many requests."""

_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m|h)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def demo(
    *,
    for_: Annotated[
        str,
        typer.Option("--for", help="End so long after the router is up (10s, 2m); else at Ctrl-C.", show_default=False),
    ] = "",
    port: Annotated[
        int, typer.Option(help="Public port; a free one is taken when it is busy.", min=0, max=65535)
    ] = 8080,
    keep_data: Annotated[
        Path | None,
        typer.Option("--keep-data", help="Keep configuration, ledger and logs in this folder.", file_okay=False),
    ] = None,
) -> None:
    """Start a router with three simulated engines, send it some conversations, and show where they went.

    Examples:
      turnout demo
      turnout demo --for 10s --port 0
      turnout demo --keep-data ./demo-data
    """
    try:
        seconds = duration_s(for_) if for_ else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--for") from error
    with _folder(keep_data) as folder:
        status = asyncio.run(Demo(Console(highlight=False), folder, port, seconds).run())
    raise typer.Exit(status)


def duration_s(text: str) -> float:
    """Seconds of `10s`, `500ms`, `2m`, `1h` or a bare number of seconds. ValueError for anything else."""
    match = _DURATION.fullmatch(text)
    seconds = float(match.group(1)) * _UNIT_S[match.group(2)] if match else 0.0
    if seconds <= 0:
        raise ValueError(f"{text[:40]!r}: expected a duration above zero such as 10s, 500ms or 2m")
    return seconds


def configuration(port: int, admin_port: int, engine_ports: tuple[int, ...], digest: str, ledger: Path) -> str:
    """The demo's turnout.toml."""
    parts = [
        f'[server]\nlisten = "{HOST}:{port}"\nadmin_listen = "{HOST}:{admin_port}"\n',
        f"[ledger]\nurl = {_quoted(f'sqlite:///{ledger}')}\n",
        f'[[model]]\nid = "{MODEL}"\n',
        f'[[key]]\nname = "demo"\ntenant = "demo"\ndigest = "{digest}"\n',
    ]
    parts += [
        f'[[endpoint]]\nname = "{name}"\nurl = "http://{HOST}:{engine_port}"\nmodels = ["{MODEL}"]\n'
        for name, engine_port in zip(ENGINES, engine_ports, strict=True)
    ]
    return "\n".join(parts)


class Demo:
    """One run, from the first child to the last."""

    def __init__(self, console: Console, folder: Path, port: int, seconds: float | None) -> None:
        self._console = console
        self._folder = folder
        self._seconds = seconds
        # Counted from the moment the router is up: how long that takes is the machine's affair.
        self._up = asyncio.Event()
        self._deadline = float("inf")
        self._port = free_port(port)
        self._admin_port = free_port(ADMIN_PORT, self._port)
        self._key = "demo-" + secrets.token_urlsafe(18)
        self._children: list[Child] = []
        self._sent: list[Sent] = []
        self._asked_port = port

    async def run(self) -> int:
        """The exit status: 0 when it ended as asked (time, Ctrl-C), 1 when a child failed."""
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        show = asyncio.create_task(self._show())
        halt = asyncio.create_task(stop.wait())
        over = asyncio.create_task(self._over())
        try:
            await asyncio.wait({show, halt, over}, return_when=asyncio.FIRST_COMPLETED)
            failed = show.done()
            if failed:
                self._console.print(str(show.exception()), style="red", markup=False)
            return int(failed)
        finally:
            for task in (show, halt, over):
                task.cancel()
            await asyncio.wait({show, halt, over})
            self._console.print("Ending the router and the engines …")
            await end(self._children)

    async def _show(self) -> None:
        """Start, send, report; then watch the children. Ends only by StartError or cancellation."""
        await self._start()
        await self._work()
        await self._report()
        ended = await next(asyncio.as_completed([child.over() for child in self._children]))
        raise StartError(f"{ended.name} ended by itself\n{ended.last_words()}")

    async def _over(self) -> None:
        """Wait until the time is over; for ever without `--for`."""
        await self._up.wait()
        if self._seconds is None:
            await asyncio.Event().wait()
        await asyncio.sleep(max(self._deadline - time.monotonic() - STOP_RESERVE_S, 0))

    async def _start(self) -> None:
        began = time.monotonic()
        for name in ENGINES:
            arguments = ["engine", "--port", "0", "--model", MODEL, "--name", name, "--seed", str(ENGINE_SEED)]
            self._children.append(await Child.spawn(name, arguments, self._folder))
        ports = tuple([await child.listening_port() for child in self._children])
        digest = "sha256:" + hashlib.sha256(self._key.encode()).hexdigest()
        file = self._folder / "turnout.toml"
        file.write_text(
            configuration(self._port, self._admin_port, ports, digest, self._folder / "turnout.db"), encoding="utf-8"
        )
        router = await Child.spawn("router", ["serve", "-c", str(file)], self._folder)
        self._children.append(router)
        client = self._client(self._port)
        async with router.starting():
            while (await client.get("/ready"))[0] != 200:  # noqa: PLR2004 - OK
                await router.pause()
        if self._seconds is not None:
            self._deadline = time.monotonic() + self._seconds
        self._up.set()
        if self._asked_port not in {0, self._port}:
            self._console.print(f"Port {self._asked_port} is busy; using {self._port}.")
        self._console.print(
            f"Router on http://{HOST}:{self._port}, three simulated engines, up after {time.monotonic() - began:.1f} s."
        )

    async def _work(self) -> None:
        plans = conversations()
        total = sum(len(plan.questions) for plan in plans)
        client = self._client(self._port)
        until = self._deadline - STOP_RESERVE_S - REPORT_RESERVE_S
        with self._progress(total) as heard, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until - time.monotonic() if self._seconds is not None else None):
                await asyncio.gather(*(converse(client, plan, until, heard) for plan in plans))

    @contextlib.contextmanager
    def _progress(self, total: int) -> Iterator[Callable[[Sent], None]]:
        columns = (TextColumn("Conversations"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal) as bar:
            task = bar.add_task("", total=total)

            def heard(sent: Sent) -> None:
                self._sent.append(sent)
                bar.advance(task)
                done = len(self._sent)
                if not self._console.is_terminal and (done % STEP_LINES == 0 or done == total):
                    self._console.print(f"{done}/{total} requests answered")

            yield heard

    async def _report(self) -> None:
        console = self._console
        figures = summary(self._sent)
        console.print()
        console.print(endpoint_table(figures))
        for line in figure_lines(figures, await self._ledger_rows(len(self._sent))):
            console.print(line, markup=False)
        decision = next((sent.decision for sent in reversed(self._sent) if sent.decision), "")
        status, page = await self._client(self._admin_port).get(f"/x/decisions/{decision}")
        if status == 200:  # noqa: PLR2004 - OK
            table = explain_table(msgspec.json.decode(page, type=dict))
            if table is not None:
                console.print()
                console.print(table)
        console.print()
        base, admin = f"http://{HOST}:{self._port}", f"http://{HOST}:{self._admin_port}"
        console.print(snippets(base, admin, self._key, MODEL, decision), markup=False, soft_wrap=True)
        console.print("Running until Ctrl-C." if self._seconds is None else "Running until the time is over.")

    async def _ledger_rows(self, expected: int) -> int | None:
        """Calls in the ledger, once the writer has caught up; None when the file cannot be read."""
        until = time.monotonic() + LEDGER_WAIT_S
        rows = count_calls(self._folder / "turnout.db")
        while (rows or 0) < expected and time.monotonic() < until:
            await asyncio.sleep(0.05)
            rows = count_calls(self._folder / "turnout.db")
        return rows

    def _client(self, port: int) -> Client:
        return Client(HOST, port, self._key, MODEL)


def count_calls(database: Path) -> int | None:
    """Rows of `calls` in a ledger file, read without touching it; None when there is none to read."""
    try:
        with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            rows: int = connection.execute("SELECT count(*) FROM calls").fetchone()[0]
            return rows
    except sqlite3.Error:
        return None


@contextlib.contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="turnout-demo-") as name:
        yield Path(name)


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return msgspec.json.encode(text).decode()
