"""What is wrong with a configuration: a list of problems, each with its place, key, value seen and value wanted.

A value that may be a credential is never shown: messages end up in logs and bug reports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import msgspec

SHOWN_MAX = 64
HIDDEN = "***"

# Fields whose value is, or is easily mistaken for, a credential; and what an unknown field with one tends to be called.
_CREDENTIAL_FIELDS = frozenset({"api_key", "digest", "prefix"})
_CREDENTIAL_TABLES = ("endpoint[", "key[")
_CREDENTIAL_NAME = re.compile(r"key|secret|token|passw|credential|digest|auth", re.IGNORECASE)
_USERINFO = re.compile(r"//[^/@\s]*@")


class Problem(msgspec.Struct, frozen=True):
    """One thing to mend. `where` is `file:line` or `environment NAME`; `seen` is already fit to be shown."""

    where: str
    key: str
    seen: str
    expected: str

    def __str__(self) -> str:
        seen = f" = {self.seen}" if self.seen else ""
        return f"{self.where}: {self.key}{seen}: expected {self.expected}"


class ConfigError(Exception):
    """The configuration cannot be used. `problems` is never empty and holds everything found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


def shown(key: str, value: object) -> str:
    """Render `value` of `key` for a message: one line, bounded, and never a credential."""
    table, _, field = key.rpartition(".")
    if table.startswith(_CREDENTIAL_TABLES) and field in _CREDENTIAL_FIELDS:
        return HIDDEN
    text = _USERINFO.sub(f"//{HIDDEN}@", literal(value))
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 1] + "…"


def shown_unknown(key: str, value: object) -> str:
    """Render the value of a key that the schema does not know; it may be a credential under a mistyped name."""
    may_hold_one = isinstance(value, (dict, list)) or _CREDENTIAL_NAME.search(key) or key.startswith(_CREDENTIAL_TABLES)
    return HIDDEN if may_hold_one else shown(key, value)


def literal(value: object) -> str:
    """Write `value` as it would stand in a TOML file."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal_key(name)} = {literal(member)}" for name, member in value.items()) + "}"
    return str(value)


def literal_key(name: str) -> str:
    """Write `name` as a TOML key: bare where that is legal, else quoted."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else literal(name)
