"""Runs on all cores: each is a pure function of (files, options, policy, seed), whichever process makes it.

Workers read the files themselves, once; what travels is options and figures. Results come back in the order asked.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, Self

import msgspec

from turnout.sim.replay.options import ReplayOptions
from turnout.sim.replay.reader import read
from turnout.sim.replay.summary import summary, verdicts
from turnout.sim.replay.trace import Trace
from turnout.sim.replay.world import World

Tick = Callable[[str, float], None]
"""Hears a run's label and the share of it that is done."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Which traffic."""

    files: tuple[str, ...]
    spread: bool = True
    share_tools: bool = False

    def load(self) -> Trace:
        """Read it. Raises BadTrace."""
        return read([Path(file) for file in self.files], spread=self.spread, share_tools=self.share_tools)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One replay to make."""

    options: ReplayOptions
    policy: str
    seed: int

    @property
    def label(self) -> str:
        """Name it in progress displays."""
        return f"{self.policy} seed {self.seed}"


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a run: its figures, and per request what paired comparison needs."""

    run: Run
    figures: dict[str, Any]
    met: list[bool]
    ttft_s: list[float]
    names: list[int]
    """Which request each entry is, by number in the trace: closed loops come in an order of their own."""


def perform(trace: Trace, run: Run, tick: Tick | None = None) -> Done:
    """Make one replay here and now."""
    total = max(1, trace.size)
    label = run.label
    progress = None if tick is None else (lambda ended: tick(label, ended / total))
    record = World(trace, run.options, run.policy, run.seed, progress).run()
    return Done(
        run=run,
        figures=summary(record, run.options, trace.block_tokens),
        met=verdicts(record, run.options, trace.block_tokens),
        ttft_s=list(record.ttft_s),
        names=_names(trace, record.order),
    )


def perform_all(source: Source, trace: Trace, runs: list[Run], jobs: int, tick: Tick) -> list[Done]:
    """Make all replays, up to `jobs` at once; results in the order of `runs`."""
    if jobs <= 1 or len(runs) <= 1:
        done = []
        for run in runs:
            done.append(perform(trace, run, tick))
            tick(run.label, 1.0)
        return done
    results: dict[int, Done] = {}
    with _executor(source, min(jobs, len(runs))) as executor:
        pending: dict[Future[Done], int] = {
            executor.submit(_perform_there, run): place for place, run in enumerate(runs)
        }
        while pending:
            ready, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in ready:
                place = pending.pop(future)
                results[place] = future.result()
                tick(runs[place].label, 1.0)
    return [results[place] for place in range(len(runs))]


class Bench:
    """Keeps workers alive over many rounds of runs, for searches."""

    def __init__(self, source: Source, trace: Trace, jobs: int) -> None:
        self._trace = trace
        self._executor = _executor(source, jobs) if jobs > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def shares(self, runs: list[Run]) -> Iterator[tuple[int, float]]:
        """Yield (number of the run, share within the objective) as runs end."""
        if self._executor is None:
            for place, run in enumerate(runs):
                yield place, perform(self._trace, run).figures["slo_share"]
            return
        pending = {self._executor.submit(_share_there, run): place for place, run in enumerate(runs)}
        while pending:
            ready, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in ready:
                yield pending.pop(future), future.result()


def cores() -> int:
    """Processes to use when nobody says."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _executor(source: Source, jobs: int) -> ProcessPoolExecutor:
    # spawn: a forked copy of a process that draws a progress bar from a thread may hang.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_prepare, initargs=(source,))


_trace_here: list[Trace] = []


def _prepare(source: Source) -> None:
    _trace_here.append(source.load())


def _perform_there(run: Run) -> Done:
    return perform(_trace_here[0], run)


def _share_there(run: Run) -> float:
    trace = _trace_here[0]
    record = World(trace, run.options, run.policy, run.seed).run()
    met = verdicts(record, run.options, trace.block_tokens)
    return sum(met) / len(met)


def _names(trace: Trace, order: list[Any]) -> list[int]:
    everything = list(trace.requests)
    for session in trace.sessions:
        everything += session.requests
    numbers = {id(request): number for number, request in enumerate(everything)}
    return [numbers[id(request)] for request in order]
