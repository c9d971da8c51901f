"""Rooms stay liveable (DESIGN §2): a module has at most 400 lines, a function fewer than 60."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE_LINES_MAX = 400
TEST_LINES_MAX = 700  # the tests of one page of rows, or one transcript table, stay together
FUNCTION_LINES_MAX = 60


def modules(*folders: str) -> list[Path]:
    return [
        path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if "migrations" not in path.parts
    ]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length in lines of each function; docstring and signature do not count as code to hold in one's head."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body
            yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1


def test_there_are_modules_to_look_at() -> None:
    assert ROOT / "src" / "turnout" / "__init__.py" in modules("src")


@pytest.mark.parametrize(
    ("folder", "most"), [("src", MODULE_LINES_MAX), ("tests", TEST_LINES_MAX), ("benchmarks", MODULE_LINES_MAX)]
)
def test_no_module_is_longer_than_its_bound(folder: str, most: int) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules(folder)}
    assert [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lengths.items() if n > most] == []


def test_no_function_is_longer_than_its_bound() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {name} has {length} lines"
        for path in modules("src", "benchmarks")
        for name, length in functions(path)
        if length >= FUNCTION_LINES_MAX
    ]
    assert long == []


def test_every_module_states_its_rule() -> None:
    silent = [path for path in modules("src") if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert [str(path.relative_to(ROOT)) for path in silent] == []
