"""Layers and purity (DESIGN §2): the contracts of pyproject.toml hold, and they would notice a breach."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMPURE = frozenset(
    {"asyncio", "datetime", "logging", "os", "random", "secrets", "socket", "subprocess", "threading", "time", "uuid"}
)
PURE_PACKAGES = ("core", "dialects", "engines")
REFUSED_NAMES = frozenset({"utils", "util", "helpers", "common", "manager", "base", "misc"})


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_contracts_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    command = [str(program), "--no-logo", "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    run = subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


def test_nothing_pure_imports_time_chance_network_disk_or_log() -> None:
    files = [path for package in PURE_PACKAGES for path in (ROOT / "src/turnout" / package).rglob("*.py")]
    assert files
    breaches = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported(path)
        if name.partition(".")[0] in IMPURE
    ]
    assert breaches == []


def test_no_room_is_named_after_nothing() -> None:
    named = [path for path in (ROOT / "src").rglob("*") if path.stem in REFUSED_NAMES]
    assert [str(path.relative_to(ROOT)) for path in named] == []


def test_nothing_is_patched() -> None:
    files = list((ROOT / "tests").rglob("*.py"))
    patched = [
        str(path.relative_to(ROOT))
        for path in files
        if any(name.startswith("unittest.mock") for name in imported(path))
        or any(
            isinstance(node, ast.arg) and node.arg in {"monkeypatch", "mocker"}
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert patched == []
