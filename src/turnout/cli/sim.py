"""`turnout sim`: play a scenario on virtual time; a broken promise comes with the seed that shows it again."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from turnout.sim.world.scenarios import SCENARIOS
from turnout.sim.world.world import Report, play

BROKEN_STATUS = 1


def sim(
    scenario: Annotated[str, typer.Option(help="A name from the list, or all.")] = "all",
    seed: Annotated[int, typer.Option(help="First seed; the same seed gives the same history.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many seeds, one after the other.")] = 1,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per play.")] = False,
) -> None:
    """Play failures of a fleet against the live routing code; exit 1 when a promise is broken.

    Examples:
      turnout sim                                 every scenario once
      turnout sim --scenario crash --seed 7       replay one history
      turnout sim --scenario overload --seeds 50  look for a seed that breaks something
    """
    if scenario != "all" and scenario not in SCENARIOS:
        raise typer.BadParameter(f"{scenario!r}: expected all or one of {', '.join(SCENARIOS)}")
    broken = 0
    for name in SCENARIOS if scenario == "all" else (scenario,):
        for number in range(seed, seed + seeds):
            report = play(name, number)
            broken += bool(report.violations)
            typer.echo(msgspec.json.encode(report).decode() if as_json else _line(report))
            for violation in report.violations:
                typer.echo(f"  {violation}", err=True)
            if report.violations:
                typer.echo(f"  replay: turnout sim --scenario {name} --seed {number}", err=True)
    if broken:
        raise typer.Exit(BROKEN_STATUS)


def _line(report: Report) -> str:
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in report.outcomes.items())
    verdict = "BROKEN" if report.violations else "ok"
    return (
        f"{report.scenario:<14} seed {report.seed:<6} {verdict:<6} {report.requests} requests: {outcomes}; "
        f"{report.attempts} attempts, {report.rerouted} elsewhere, {report.resumed} resumed, "
        f"queue ≤ {report.queue_peak}, wait ≤ {report.wait_max_s:.1f} s, TTFT p99 {report.ttft_p99_s:.3f} s"
    )
