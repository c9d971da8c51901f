from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from turnout.cli.verbs import app

RUN = CliRunner()
GOOD = '[auth]\nmode = "open"\n[[endpoint]]\nname = "a"\nurl = "http://h:1"\nmodels = ["m"]\napi_key = "sk-secret"\n'


def test_a_usable_configuration_is_printed_with_origins_and_without_credentials(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(GOOD, encoding="utf-8")
    result = RUN.invoke(app, ["check", "-c", str(file)], env={"TURNOUT__LOG__LEVEL": "debug"})
    assert result.exit_code == 0
    assert f"# {file}:2" in result.stdout
    assert "# environment" in result.stdout
    assert "# default" in result.stdout
    assert "sk-secret" not in result.output


def test_problems_go_to_standard_error_and_exit_with_2(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(GOOD + "wrong = 1\n[server]\nidle_s = 0\n", encoding="utf-8")
    result = RUN.invoke(app, ["check", "--config", str(file)])
    assert result.exit_code == 2
    assert result.stdout == ""
    first, second, count = result.stderr.splitlines()
    assert first.startswith(f"{file}:8: endpoint[0].wrong = ***: expected")
    assert second.startswith(f"{file}:10: server.idle_s = 0: expected")
    assert count == "2 problems found"


def test_a_missing_file_is_one_problem() -> None:
    result = RUN.invoke(app, ["check", "-c", "absent.toml"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "absent.toml: file: expected a readable file" in result.stderr
