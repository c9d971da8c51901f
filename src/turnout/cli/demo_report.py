"""What the demo says: figures made from what its clients saw, as rich tables, and the lines to try by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.table import Table

from turnout.cli.demo_workload import Sent

PERCENTILES = (50, 90, 99)


class Row(msgspec.Struct, frozen=True):
    """One endpoint's part. `hit_ratio` is cached over prompt tokens, None when no usage was reported."""

    endpoint: str
    requests: int
    share_ratio: float
    hit_ratio: float | None


class Summary(msgspec.Struct, frozen=True):
    """The figures of one run."""

    requests: int
    failed: int
    first_error: str
    rows: tuple[Row, ...]
    hit_ratio: float | None
    ttft_s: tuple[float, ...]
    """At `PERCENTILES`; empty without streams."""


def summary(sent: Sequence[Sent]) -> Summary:
    """Figures over all requests; failed ones count as requests, and only complete ones for rates and times."""
    good = [one for one in sent if not one.error]
    errors = [one.error for one in sent if one.error]
    by_endpoint: dict[str, list[Sent]] = {}
    for one in good:
        by_endpoint.setdefault(one.endpoint or "(unknown)", []).append(one)
    rows = tuple(
        Row(name, len(part), len(part) / len(good), hit_ratio(part)) for name, part in sorted(by_endpoint.items())
    )
    times = sorted(one.ttft_s for one in good if one.ttft_s is not None)
    return Summary(
        requests=len(sent),
        failed=len(errors),
        first_error=errors[0] if errors else "",
        rows=rows,
        hit_ratio=hit_ratio(good),
        ttft_s=tuple(percentile(times, p) for p in PERCENTILES) if times else (),
    )


def hit_ratio(sent: Sequence[Sent]) -> float | None:
    """Cached over prompt tokens; None when no answer reported cached tokens.

    vLLM leaves the figure out where it is zero, so among answers that report it an absent one counts as zero.
    """
    if all(one.tokens_cached is None for one in sent):
        return None
    total = sum(one.tokens_in or 0 for one in sent)
    return sum(one.tokens_cached or 0 for one in sent if one.tokens_in) / total if total else None


def percentile(ordered: Sequence[float], p: int) -> float:
    """The smallest value that at least p % of the ordered values do not exceed (nearest rank)."""
    rank = -(-len(ordered) * p // 100)
    return ordered[max(rank, 1) - 1]


def endpoint_table(figures: Summary) -> Table:
    """Where each request went."""
    table = Table(title="Where each request went", title_justify="left")
    table.add_column("endpoint")
    for name in ("requests", "share", "prefix-hit rate"):
        table.add_column(name, justify="right")
    for row in figures.rows:
        table.add_row(row.endpoint, str(row.requests), _percent(row.share_ratio), _percent(row.hit_ratio))
    return table


def figure_lines(figures: Summary, ledger_rows: int | None) -> list[str]:
    """The totals as plain lines."""
    lines = [f"Requests         {figures.requests} sent, {figures.failed} failed"]
    if figures.first_error:
        lines.append(f"First error      {figures.first_error}")
    lines.append(
        f"Prefix-hit rate  {_percent(figures.hit_ratio)} of all prompt tokens were found in an engine's KV cache"
    )
    if figures.ttft_s:
        shown = "   ".join(f"p{p} {_ms(t)}" for p, t in zip(PERCENTILES, figures.ttft_s, strict=True))
        lines.append(f"TTFT (streams)   {shown}")
    if ledger_rows is not None:
        lines.append(f"Ledger           {ledger_rows} calls recorded")
    return lines


def explain_table(explain: Mapping[str, Any]) -> Table | None:
    """The candidates of one decision in order of rank; None when the document lists none."""
    candidates = [c for c in explain.get("candidates") or () if isinstance(c, Mapping)]
    if not candidates:
        return None
    picked = explain.get("picked")
    table = Table(title=f"Why? One decision, policy {explain.get('policy', '?')}", title_justify="left")
    table.add_column("endpoint")
    # A policy prices (lowest wins) or scores (highest wins); the document says which.
    for name in ("matched blocks", str(candidates[0].get("unit", "total")), ""):
        table.add_column(name, justify="right")
    for candidate in sorted(candidates, key=_rank):
        endpoint = candidate.get("endpoint")
        matched = f"{candidate.get('matched_blocks', '?')} of {explain.get('blocks', '?')}"
        table.add_row(str(endpoint), matched, _number(candidate.get("total")), "picked" if endpoint == picked else "")
    return table


def snippets(base_url: str, admin_url: str, key: str, model: str, decision: str) -> str:
    """Lines to paste: curl, the OpenAI SDK, the admin pages."""
    return f"""\
Try it with curl:

  curl -s {base_url}/v1/chat/completions -H 'authorization: Bearer {key}' \\
    -H 'content-type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 32}}'

With the OpenAI SDK (pip install openai):

  from openai import OpenAI
  client = OpenAI(base_url="{base_url}/v1", api_key="{key}")
  for chunk in client.chat.completions.create(
      model="{model}", messages=[{{"role": "user", "content": "Hello"}}], stream=True, max_tokens=32
  ):
      print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)

And look inside:

  curl -s {admin_url}/metrics | grep turnout_requests_total
  curl -s {admin_url}/x/endpoints
  curl -s {admin_url}/x/decisions/{decision or "<x-turnout-decision of any answer>"}
"""


def _rank(candidate: Mapping[str, Any]) -> tuple[int, str]:
    rank = candidate.get("rank")
    return (rank if isinstance(rank, int) else 1 << 30, str(candidate.get("endpoint")))


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.0f} %"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "-"
