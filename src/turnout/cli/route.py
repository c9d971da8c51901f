"""`turnout route`: why a request went where it went, and the proof that the printed figures decide so again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from turnout.cli.admin_client import DEFAULT_ADMIN, AdminUrl, fail, fetch
from turnout.core.scheduling.explain import recompute

_WIDTH = 160
UNKNOWN = "-"


def route(
    decision: Annotated[str, typer.Argument(help="The x-turnout-decision of an answer.")] = "",
    *,
    admin: AdminUrl = DEFAULT_ADMIN,
    file: Annotated[Path | None, typer.Option(help="Explain a stored document instead of asking a router.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the document as it is.")] = False,
) -> None:
    """Explain one scheduling decision, and compute it again from what is printed.

    Exit code 1 when there is no such decision, 2 when it does not compute to the same pick and the same totals.

    Examples:
      turnout route 01JD3V8M2J5K6N7P8Q9R0S1T2V
      turnout route --file decision.json
    """
    if bool(decision) == (file is not None):
        raise fail("expected either the id of a decision or --file")
    if file is None:
        document = fetch(admin, f"/x/decisions/{decision}")
    else:
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise fail(f"{file}: {error}") from error
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        show(document, Console(width=_WIDTH if not Console().is_terminal else None))
    if document.get("candidates_total", 0) > len(document["candidates"]):
        if not as_json:
            print("stored in part: the best candidates of a larger pool, not computed again")
        return
    try:
        again = recompute(document)
    except (KeyError, TypeError, ValueError) as error:
        raise fail(f"the document is not complete: {error!r}") from error
    totals = [candidate["total"] for candidate in document["candidates"]]
    if (again[0], list(again[1])) != (document["picked"], totals):
        typer.echo(f"NOT REPRODUCED: computed again it picks {again[0]} with totals {list(again[1])}", err=True)
        raise typer.Exit(2)
    if not as_json:
        print("computed again from these figures: the same pick, the same totals, bit for bit")


def show(document: dict[str, Any], console: Console) -> None:
    """Print one decision as a table: the picked one first, then by rank, then who was dropped."""
    verdict = document["verdict"] if not document["held"] else f"held: {document['held']}"
    console.print(
        f"{document['request_id']}  pool [bold]{document['pool']}[/]  policy [bold]{document['policy']}[/]  "
        f"{verdict} [bold]{document['picked'] or ''}[/]  prefix {document['prefix_result']}  "
        f"{document['tokens']} tokens, {document['blocks']} blocks"
        + (f"  tie by {document['tie']}" if document["tie"] else "")
        + (f"  fallback {document['fallback']}" if document["fallback"] else "")
    )
    candidates = sorted(document["candidates"], key=lambda candidate: candidate["rank"])
    terms = list(candidates[0]["terms"]) if candidates else []
    table = Table(box=None, pad_edge=False)
    for name in ("endpoint", "mode", "matched", "expected", "busy", *terms, "total"):
        table.add_column(name, justify="left" if name in {"endpoint", "mode"} else "right")
    for candidate in candidates:
        picked = candidate["endpoint"] == document["picked"]
        table.add_row(
            candidate["endpoint"],
            candidate["mode"],
            str(candidate["matched_blocks"]),
            figure(candidate.get("expected_cached_tokens")),
            figure(candidate["load"]["busy"]),
            *(figure(candidate["terms"].get(name)) for name in terms),
            f"{figure(candidate['total'])} {candidate['unit']}",
            style="bold green" if picked else None,
        )
    if candidates:
        console.print(table)
    dropped = document["dropped"]
    if isinstance(dropped, dict) and dropped:  # as the ledger stores it
        console.print(f"[dim]dropped: {', '.join(f'{reason} {count}' for reason, count in dropped.items())}[/]")
    else:
        for drop in dropped:
            console.print(f"[dim]{drop['endpoint']}  dropped: {drop['reason']}, {drop['detail']}[/]")
    if document["relaxed"]:
        console.print(f"relaxed: {', '.join(document['relaxed'])}")


def figure(value: float | None) -> str:
    """A number for reading, a dash for unknown."""
    if value is None:
        return UNKNOWN
    return str(int(value)) if float(value).is_integer() else f"{value:.4g}"
