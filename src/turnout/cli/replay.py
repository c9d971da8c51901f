"""`turnout replay`: what a policy, a number of engines or a cache size would have done to recorded traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from turnout.core.disagg_options import Disagg
from turnout.core.options import PolicyName
from turnout.sim.replay.capacity import search_capacity
from turnout.sim.replay.faults import parse_fault
from turnout.sim.replay.options import ReplayOptions, Slo
from turnout.sim.replay.plot import as_svg
from turnout.sim.replay.report import as_json, as_table, differences_table, document
from turnout.sim.replay.trace import BadTrace, Trace
from turnout.sim.replay.work import Bench, Run, Source, cores, perform_all

_HELP_FAULT = "What befalls an engine, as dead:ENGINE:FROM:UNTIL or slow:ENGINE:FROM:UNTIL:FACTOR; UNTIL may be empty."


def replay(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Traces, plain or gzip, all of one format.")],
    *,
    policy: Annotated[str, typer.Option(help="Policies, separated by commas; the first is compared with.")] = "turnout",
    engine: Annotated[str, typer.Option(help="Profile of the engines: 8b, 70b or moe.")] = "8b",
    endpoints: Annotated[int, typer.Option(help="Number of engines.")] = 8,
    cache_multiple: Annotated[float, typer.Option(help="Prefix cache as a multiple of KV memory.")] = 1.0,
    kv_tokens: Annotated[int | None, typer.Option(help="KV memory of an engine in tokens.")] = None,
    context: Annotated[int | None, typer.Option(help="Longest prompt and output; the profile has its own.")] = None,
    load: Annotated[float, typer.Option(help="Multiple of the trace's own rate.")] = 1.0,
    sessions_per_s: Annotated[float, typer.Option(help="New sessions per second, for session traces.")] = 0.05,
    think_max_s: Annotated[float, typer.Option(help="Longest pause within a session; inf: as recorded.")] = 60.0,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Number of seeds, from 0.")] = 5,
    limit: Annotated[int | None, typer.Option(help="Only the first so many requests or sessions.")] = None,
    capacity: Annotated[bool, typer.Option(help="Also search the load at which --share meet the objective.")] = False,
    share: Annotated[float, typer.Option(help="Share of requests that must meet the objective.")] = 0.95,
    width: Annotated[float, typer.Option(help="Relative width of the bracket where a search ends.")] = 0.02,
    slo_ttft_s: Annotated[float, typer.Option(help="TTFT that every request may take.")] = 1.0,
    slo_cold_multiple: Annotated[float, typer.Option(help="Or this many times its own cold prefill.")] = 2.0,
    slo_itl_s: Annotated[float, typer.Option(help="Mean time per output token that it may take.")] = 0.1,
    routers: Annotated[int, typer.Option(help="Number of routers.")] = 1,
    bus: Annotated[bool, typer.Option(help="Routers share what they dispatch.")] = False,
    scrape_s: Annotated[float | None, typer.Option(help="Seconds between load reports; 0 for none.")] = None,
    report_delay_s: Annotated[float, typer.Option(help="Age of a load report on arrival.")] = 0.0,
    reports: Annotated[str, typer.Option(help="tokens, waiting, counts (vLLM's) or none.")] = "tokens",
    kv_events: Annotated[bool, typer.Option(help="Whether engines publish KV events.")] = True,
    event_delay_s: Annotated[float, typer.Option(help="How late KV events come.")] = 0.0,
    event_loss: Annotated[float, typer.Option(help="Share of KV event batches that are lost.")] = 0.0,
    estimate_sigma: Annotated[float, typer.Option(help="Error of the router's prompt estimates, lognormal.")] = 0.0,
    prefill_endpoints: Annotated[int, typer.Option(help="So many engines prefill, the others decode; 0: both.")] = 0,
    decode_chunk_tokens: Annotated[int | None, typer.Option(help="Batch budget of engines that decode.")] = None,
    decider: Annotated[str, typer.Option(help="When to split: seconds, threshold, always or conditional.")] = "seconds",
    decode_policy: Annotated[
        str | None, typer.Option(help="Rule of the decode leg; absent: both legs jointly.")
    ] = None,
    transfer_gb_per_s: Annotated[float, typer.Option(help="Speed of KV transfers in 10^9 bytes per second.")] = 10.0,
    fault: Annotated[list[str] | None, typer.Option(help=_HELP_FAULT)] = None,
    spread: Annotated[bool, typer.Option(help="Spread records of one stamp evenly (mooncake).")] = True,
    share_tools: Annotated[bool, typer.Option(help="Sessions with equal tools share their blocks.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the whole report here; - for stdout.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture here, as SVG.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes; all cores when absent.")] = None,
    quiet: Annotated[bool, typer.Option(help="No progress display.")] = False,
) -> None:
    """Replay recorded traffic through the live scheduler on virtual time.

    Examples:
      turnout replay trace.jsonl.gz --engine 70b --cache-multiple 4 --policy turnout,least_busy --seeds 1
      turnout replay trace.jsonl.gz --engine 70b --policy turnout,llm_d_default --capacity --plot capacity.svg
      turnout replay sessions.jsonl.gz --engine moe --endpoints 4 --sessions-per-s 0.05 --json report.json
    """
    policies = _policies(policy)
    try:
        options = ReplayOptions(
            endpoints=endpoints,
            profile=engine,
            cache_multiple=cache_multiple,
            kv_tokens=kv_tokens,
            context_max=context,
            load=load,
            sessions_per_s=sessions_per_s,
            think_max_s=think_max_s,
            requests_max=limit,
            routers=routers,
            bus=bus,
            scrape_interval_s=scrape_s,
            report_delay_s=report_delay_s,
            reports=reports,  # type: ignore[arg-type]  # checked by the value itself
            knowledge="exact" if kv_events else "approximate",
            event_delay_s=event_delay_s,
            event_loss=event_loss,
            estimate_sigma=estimate_sigma,
            prefill_endpoints=prefill_endpoints,
            decode_chunk_tokens=decode_chunk_tokens,
            disagg=msgspec.convert(
                {
                    "decider": decider,
                    "decode_policy": decode_policy,
                    "transfer_bytes_per_s": transfer_gb_per_s * 1e9,
                },
                Disagg,
            ),
            faults=tuple(parse_fault(text) for text in fault or ()),
            slo=Slo(ttft_s=slo_ttft_s, cold_multiple=slo_cold_multiple, tpot_s=slo_itl_s),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    source = Source(files=tuple(str(file) for file in files), spread=spread, share_tools=share_tools)
    try:
        trace = source.load()
    except BadTrace as error:
        typer.echo(str(error), err=True)
        raise SystemExit(2) from error
    _show(trace, options, source, policies, seeds, jobs or cores(), share, width, json_file, plot,
          capacity=capacity, quiet=quiet)  # fmt: skip


def _show(
    trace: Trace,
    options: ReplayOptions,
    source: Source,
    policies: list[str],
    seeds: int,
    jobs: int,
    share: float,
    width: float,
    json_file: Path | None,
    plot: Path | None,
    *,
    capacity: bool,
    quiet: bool,
) -> None:
    console = Console(stderr=True)
    numbers = list(range(seeds))
    runs = [Run(options=options, policy=name, seed=seed) for name in policies for seed in numbers]
    found: dict[str, dict[str, Any]] | None = None
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    ) as progress:
        display = _Display(progress, runs)
        results = perform_all(source, trace, runs, jobs, display.tick)
        if capacity:
            with Bench(source, trace, jobs) as bench:
                found = search_capacity(
                    bench,
                    options,
                    policies,
                    numbers,
                    closed=trace.closed,
                    wanted=share,
                    width=width,
                    heard=display.searched,
                )
    report = document(trace, options, results, found)
    text = as_json(report)
    if json_file is not None and str(json_file) == "-":
        typer.echo(text, nl=False)
    else:
        out = Console()
        out.print(as_table(report))
        gaps = differences_table(report)
        if gaps is not None:
            out.print(gaps)
        for note in trace.notes:
            out.print(f"note: {note}")
        if json_file is not None:
            json_file.write_text(text, encoding="utf-8")
    if plot is not None:
        plot.write_text(as_svg(report), encoding="utf-8")


class _Display:
    """One line for the replays, one per policy for the searches."""

    def __init__(self, progress: Progress, runs: list[Run]) -> None:
        self._progress = progress
        self._shares: dict[str, float] = {}
        self._all = progress.add_task("replays", total=len(runs))
        self._searches: dict[str, TaskID] = {}

    def tick(self, label: str, share: float) -> None:
        """A run is this far."""
        self._shares[label] = share
        self._progress.update(self._all, completed=sum(self._shares.values()))

    def searched(self, policy: str, replays: int) -> None:
        """A search has made more replays; how many it needs is not known before."""
        task = self._searches.get(policy)
        if task is None:
            task = self._searches[policy] = self._progress.add_task(f"capacity of {policy}", total=None)
        self._progress.advance(task, replays)


def _policies(text: str) -> list[str]:
    known = get_args(PolicyName)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"--policy: {name!r}, expected some of {', '.join(known)}")
    if not names:
        raise typer.BadParameter(f"--policy: none given, expected some of {', '.join(known)}")
    return list(dict.fromkeys(names))
