"""The compiled hot path is used only while it is the same as the source (docs/adr/0004)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from turnout import compiled

ROOT = Path(__file__).parents[2]
_SHOW = "import turnout, turnout.core.retry_budget as m; print(turnout.compiled.state()); print(m.__file__)"


def test_every_listed_module_exists_and_is_listed_once() -> None:
    names = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["turnout"]["compiled"]
    assert names == sorted(set(names))
    assert all((ROOT / "src" / (name.replace(".", "/") + ".py")).is_file() for name in names)


def test_without_a_manifest_everything_is_interpreted(tmp_path: Path) -> None:
    state, file = _run(tmp_path)
    assert state.startswith("interpreted: not compiled")
    assert file.endswith("retry_budget.py")


def test_one_changed_source_makes_the_whole_set_stale(tmp_path: Path) -> None:
    _manifest(tmp_path, {"turnout.core.retry_budget": "0" * 32})
    state, file = _run(tmp_path)
    assert state.startswith("interpreted: turnout.core.retry_budget has changed")
    assert file.endswith("retry_budget.py")


def test_a_broken_manifest_is_no_manifest(tmp_path: Path) -> None:
    _manifest(tmp_path, {}).write_text("{")
    assert _run(tmp_path)[0].startswith("interpreted: not compiled")


def test_pure_can_be_asked_for(tmp_path: Path) -> None:
    assert _run(tmp_path, TURNOUT_PURE="1")[0] == "interpreted: TURNOUT_PURE is set"


def _manifest(tmp_path: Path, made_of: dict[str, str]) -> Path:
    file = tmp_path / "build" / "compiled" / compiled.FOLDER.name / compiled.MANIFEST
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(made_of))
    return file


def _run(tmp_path: Path, **environment: str) -> list[str]:
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src" / "turnout", source / "turnout", ignore=shutil.ignore_patterns("__pycache__"))
    kept = {name: value for name, value in os.environ.items() if name != "TURNOUT_PURE"}
    shown = subprocess.run(
        [sys.executable, "-c", _SHOW],
        env={**kept, "PYTHONPATH": str(source), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.splitlines()
