"""Options from the environment: `TURNOUT__SERVER__LISTEN` is `server.listen`, and wins over the file.

Only fields of plain tables can be set this way, lists as JSON: arrays of tables have no stable name for an element.
An unknown name with the prefix is an error, because a mistyped override that does nothing is found too late.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from msgspec import inspect

from turnout.config.errors import Problem, shown, shown_unknown
from turnout.config.walk import expectation, without_none

PREFIX = "TURNOUT__"
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def overlay(
    raw: dict[str, Any], environ: Mapping[str, str], root: inspect.StructType
) -> tuple[dict[str, Any], dict[str, str], list[Problem]]:
    """Lay the environment over the raw tree of the file.

    Returns the merged tree, the variable behind each key that came from the environment, and the problems.
    """
    merged = dict(raw)
    names: dict[str, str] = {}
    problems: list[Problem] = []
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        setting = _setting(variable, environ[variable], root)
        if isinstance(setting, Problem):
            problems.append(setting)
            continue
        table, field, value = setting
        members = merged.get(table, {})
        if isinstance(members, dict):  # otherwise the walk reports the file's own mistake
            merged[table] = {**members, field: value}
            names[f"{table}.{field}"] = variable
    return merged, names, problems


def expand(text: str, environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """Replace each `${NAME}` in `text`; returns the result and the names that are not set (or empty)."""
    missing = [name for name in _REFERENCE.findall(text) if not environ.get(name)]
    return _REFERENCE.sub(lambda found: environ.get(found[1], ""), text), missing


def _setting(variable: str, text: str, root: inspect.StructType) -> tuple[str, str, Any] | Problem:
    where = f"environment {variable}"
    key = variable.removeprefix(PREFIX).replace("__", ".").lower()
    table, _, field = key.partition(".")
    tables = {member.encode_name: member.type for member in root.fields}
    wanted = tables.get(table)
    if isinstance(wanted, inspect.ListType):
        return Problem(where, key, "", f"a field of a plain table; [[{table}]] can only be set in the file")
    if not isinstance(wanted, inspect.StructType):
        names = [name for name, kind in tables.items() if isinstance(kind, inspect.StructType)]
        return Problem(where, key, shown_unknown(key, text), f"{PREFIX}TABLE__FIELD, TABLE one of {', '.join(names)}")
    fields = {member.encode_name: member.type for member in wanted.fields}
    if field not in fields:
        expected = f"{PREFIX}{table.upper()}__FIELD, FIELD one of {', '.join(fields)}"
        return Problem(where, key, shown_unknown(key, text), expected)
    try:
        return table, field, _parsed(text, fields[field])
    except ValueError:
        return Problem(where, key, shown(key, text), expectation(fields[field]))


def _parsed(text: str, wanted: inspect.Type) -> Any:
    """Read a variable as the wanted type; range and choice are checked by the walk. Raises ValueError."""
    match wanted:
        case inspect.Metadata(type=inner):
            return _parsed(text, inner)
        case inspect.UnionType():
            return _parsed(text, without_none(wanted))
        case inspect.BoolType():
            return {"true": True, "false": False}[text] if text in {"true", "false"} else _refuse(text)
        case inspect.IntType():
            return int(text) if re.fullmatch(r"[+-]?[0-9]{1,40}", text) else _refuse(text)
        case inspect.FloatType():
            return float(text)
        case inspect.LiteralType(values=values):
            return next((value for value in values if str(value) == text), text)
        case inspect.ListType() | inspect.DictType():
            return json.loads(text)
    return text


def _refuse(text: str) -> Any:
    raise ValueError(text)
