"""`turnout top`: the endpoints of a running router as a live table, from its admin API."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from turnout.cli.admin_client import DEFAULT_ADMIN, AdminUrl, fetch
from turnout.cli.route import UNKNOWN, figure

_COLUMNS = (
    "endpoint",
    "state",
    "in flight",
    "running",
    "waiting",
    "queue s",
    "KV use",
    "match",
    "TTFT s",
    "step ms",
    "knows",
    "report age",
)
_WIDTH = 140


def top(
    *,
    admin: AdminUrl = DEFAULT_ADMIN,
    interval: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one table and end.")] = False,
) -> None:
    """Watch endpoints: in flight, queue, KV use, match rate, time to first token. Ctrl-C ends.

    Examples:
      turnout top
      turnout top --admin http://10.0.0.5:9090 --once
    """
    console = Console()
    if once or not console.is_terminal:
        Console(width=None if console.is_terminal else _WIDTH).print(table(fetch(admin, "/x/endpoints")))
        return
    with Live(table(fetch(admin, "/x/endpoints")), console=console, auto_refresh=False, screen=True) as live:
        try:
            while True:
                time.sleep(interval)
                live.update(table(fetch(admin, "/x/endpoints")), refresh=True)
        except KeyboardInterrupt:
            return


def table(document: dict[str, Any]) -> Table:
    """Set out the endpoints, one row each, and a line for all of them."""
    endpoints = document["endpoints"]
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        shown.add_column(name, justify="left" if name in {"endpoint", "state", "knows"} else "right")
    for endpoint in endpoints:
        state = state_of(endpoint)
        shown.add_row(
            endpoint["endpoint"],
            state,
            str(endpoint["in_flight"]),
            figure(endpoint["running"]),
            figure(endpoint["waiting"]),
            figure(round(endpoint["queue_s"], 3)),
            percent(endpoint["kv_usage_ratio"]),
            percent(endpoint["match_rate"]),
            figure(None if endpoint["ttft_s"] is None else round(endpoint["ttft_s"], 3)),
            figure(round(1000 * endpoint["step_s"], 1)),
            endpoint["mode"] + ("" if endpoint["trusted"] else " (untrusted)"),
            figure(None if endpoint["report_age_s"] is None else round(endpoint["report_age_s"], 1)),
            style=None if state == "ready" else "yellow",
        )
    total = sum(endpoint["in_flight"] for endpoint in endpoints)
    ready = sum(state_of(endpoint) == "ready" for endpoint in endpoints)
    shown.add_row(f"all {len(endpoints)}", f"{ready} ready", str(total), style="bold")
    return shown


def state_of(endpoint: dict[str, Any]) -> str:
    """One word for what speaks against an endpoint, the strongest first."""
    for mark in ("unreachable", "draining", "probe_failing"):
        if endpoint[mark]:
            return mark.replace("_", " ")
    if endpoint["breaker"] != "closed":
        return f"breaker {endpoint['breaker'].replace('_', ' ')}"
    if endpoint["cooldown_s"] > 0:
        return "cooling down"
    return "standby" if endpoint["standby"] else "ready"


def percent(share: float | None) -> str:
    """A share for reading, a dash for unknown."""
    return UNKNOWN if share is None else f"{100 * share:.0f} %"
