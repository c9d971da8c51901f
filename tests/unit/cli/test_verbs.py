from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import turnout
from turnout.cli.verbs import app

RUN = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})


def test_version() -> None:
    shown = RUN.invoke(app, ["--version"]).output
    assert shown == f"turnout {turnout.__version__} (hot path {turnout.compiled.state()})\n"


@pytest.mark.parametrize(
    "verb", [[], ["serve"], ["demo"], ["engine"], ["sim"], ["check"], ["keys"], ["keys", "new"], ["keys", "hash"]]
)
def test_every_help_has_examples(verb: list[str]) -> None:
    result = RUN.invoke(app, [*verb, "--help"])
    assert result.exit_code == 0
    lines = [line.strip() for line in result.output.splitlines()]
    assert "turnout" in lines[lines.index("Examples:") + 1]


def test_an_unknown_verb_is_a_usage_error() -> None:
    result = RUN.invoke(app, ["serv"])
    assert result.exit_code == 2
    assert "serv" in result.output


def loaded_by(code: str) -> set[str]:
    """Return the packages that a fresh interpreter has imported after `code`."""
    script = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    return set(run.stdout.split())


def test_serve_reads_its_configuration_without_the_parser_library() -> None:
    code = "from turnout.cli.main import main\ntry: main(['serve', '-c', 'absent.toml'])\nexcept SystemExit: pass"
    assert loaded_by(code).isdisjoint({"typer", "rich", "pydantic", "sqlalchemy", "alembic", "starlette", "uvicorn"})


def test_the_other_verbs_are_not_imported_for_one() -> None:
    code = "from turnout.cli.verbs import app\napp(['keys', 'hash', 'tt-x'], standalone_mode=False)"
    assert loaded_by(code).isdisjoint({"sqlalchemy", "alembic", "starlette", "uvicorn", "uvloop", "httptools"})


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "turnout", "serve", "-c", "absent.toml"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (run.returncode, run.stdout) == (2, "")
    assert "absent.toml: file: expected a readable file" in run.stderr
