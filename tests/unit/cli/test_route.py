"""`turnout route --file`: whole documents are computed again, those the ledger keeps of large pools are shown."""

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from turnout.cli.verbs import app
from turnout.core import options
from turnout.core.fleet.registry import Fleet
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.explain import brief, explain
from turnout.core.scheduling.pipeline import schedule

RUN = CliRunner()


@pytest.mark.parametrize(("size", "said"), [(8, "bit for bit"), (20, "stored in part")])
def test_a_decision_of_the_ledger_is_shown(size: int, said: str, tmp_path: Path) -> None:
    fleet = Fleet(options.Scheduling(policy="turnout"), options.Prefix(), options.Breaker())
    for number in range(size):
        fleet.add(options.Endpoint(name=f"e{number:02}", url="http://h:1", models=["m"]), 0.0)
        fleet.endpoints[f"e{number:02}"].in_flight = (7 * number) % 5
    fleet.endpoints["e03"].draining = True
    pool = fleet.pool("m")
    assert pool is not None
    decision = schedule(Ask("m", [1, 2], 200, 150), pool, fleet, 2.5, random.Random(1))
    stored = tmp_path / "decision.json"
    stored.write_text(json.dumps(brief(explain(decision, "r"))))
    shown = RUN.invoke(app, ["route", "--file", str(stored)])
    assert shown.exit_code == 0, shown.output
    assert said in shown.output
    assert "dropped: draining 1" in shown.output
