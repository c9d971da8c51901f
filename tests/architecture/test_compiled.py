"""What the compiled modules are asked to do for their speed (docs/adr/0004)."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILED: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["turnout"]["compiled"]


@pytest.mark.parametrize("module", COMPILED)
def test_numbers_texts_and_tables_of_compiled_modules_are_final(module: str) -> None:
    tree = ast.parse((ROOT / "src" / (module.replace(".", "/") + ".py")).read_text())
    open_constants = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.Dict | ast.Call | ast.BinOp)
        for target in node.targets
        if isinstance(target, ast.Name) and not _is_type(node.value)
    ]
    assert not open_constants, "expected `name: Final = ...`: other names are looked up each time"


def _is_type(value: ast.expr) -> bool:
    """Unions and type variables are no values."""
    if isinstance(value, ast.Call):
        return ast.unparse(value.func) in ("TypeVar", "WeakKeyDictionary")
    return isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr)
