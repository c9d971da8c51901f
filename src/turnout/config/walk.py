"""Turn the raw tree of a TOML file into option structs, and name every deviation from the schema with its key.

The rules: an unknown key is an error with a suggestion; a bool is no number; an integer is fine where a float is
wanted; numbers are finite; nothing is coerced. The walk never stops at the first problem.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from msgspec import inspect

from turnout.config.errors import Problem, literal, shown, shown_unknown
from turnout.config.lines import child

# Stands for a value with a problem; the problem is recorded, so the tree is never used.
BROKEN: Any = msgspec.UNSET

Whereabouts = Callable[[str], str]


class Walk:
    """One pass over one raw tree. `where` maps a key path to the place where its value was written."""

    def __init__(self, where: Whereabouts) -> None:
        self.problems: list[Problem] = []
        self._where = where

    def table(self, path: str, raw: object, struct: inspect.StructType) -> Any:
        """Build `struct` from a table, or record what is wrong with it."""
        if not isinstance(raw, Mapping):
            return self._wrong(path, raw, "a table")
        fields = {field.encode_name: field for field in struct.fields}
        for name, value in raw.items():
            if name not in fields:
                self._unknown(child(path, name), name, value, list(fields))
        values = {}
        for name, field in fields.items():
            if name in raw:
                values[field.name] = self.value(child(path, name), raw[name], field.type)
            elif field.required:
                expected = f"{expectation(field.type)}; it is required"
                self.problems.append(Problem(self._where(path), child(path, name), "", expected))
                values[field.name] = BROKEN
        if _any_broken(values.values()):
            return BROKEN
        return struct.cls(**values)

    def value(self, path: str, raw: Any, wanted: inspect.Type) -> Any:
        """Return `raw` as a value of the wanted type, or record a problem and return BROKEN."""
        match wanted:
            case inspect.Metadata(type=inner):
                return self.value(path, raw, inner)
            case inspect.UnionType():
                return self.value(path, raw, without_none(wanted))
            case inspect.StructType():
                return self.table(path, raw, wanted)
            case inspect.ListType() if isinstance(raw, list):
                return self._list(path, raw, wanted)
            case inspect.DictType() if isinstance(raw, Mapping):
                members = {name: self.value(child(path, name), raw[name], wanted.value_type) for name in raw}
                return BROKEN if _any_broken(members.values()) else members
            case _ if fits(raw, wanted):
                return float(raw) if isinstance(wanted, inspect.FloatType) else raw
        return self._wrong(path, raw, expectation(wanted))

    def _list(self, path: str, raw: list[object], wanted: inspect.ListType) -> Any:
        if len(raw) < (wanted.min_length or 0):
            return self._wrong(path, raw, expectation(wanted))
        items = [self.value(f"{path}[{index}]", item, wanted.item_type) for index, item in enumerate(raw)]
        return BROKEN if _any_broken(items) else items

    def _unknown(self, path: str, name: str, value: object, known: list[str]) -> None:
        near = difflib.get_close_matches(name, known, n=1)
        expected = f"a known key; did you mean {near[0]}?" if near else f"one of the keys {', '.join(known)}"
        self.problems.append(Problem(self._where(path), path, shown_unknown(path, value), expected))

    def _wrong(self, path: str, raw: object, expected: str) -> Any:
        self.problems.append(Problem(self._where(path), path, shown(path, raw), expected))
        return BROKEN


def fits(raw: Any, wanted: inspect.Type) -> bool:
    """Say whether a scalar has the wanted type and lies in its range."""
    match wanted:
        case inspect.BoolType():
            return isinstance(raw, bool)
        case inspect.LiteralType(values=values):
            return type(raw) in (str, int) and raw in values
        case inspect.StrType():
            return isinstance(raw, str) and _string_fits(raw, wanted)
        case inspect.IntType():
            return isinstance(raw, int) and not isinstance(raw, bool) and _in_range(raw, wanted)
        case inspect.FloatType():
            is_number = isinstance(raw, (int, float)) and not isinstance(raw, bool)
            # The range is compared first: it keeps integers that no float can hold away from the conversion.
            return is_number and _in_range(raw, wanted) and math.isfinite(raw)
    return False


def expectation(wanted: inspect.Type) -> str:
    """Say in words what a value of this type looks like."""
    match wanted:
        case inspect.Metadata(type=inner):
            return expectation(inner)
        case inspect.UnionType():
            return expectation(without_none(wanted))
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(literal(value) for value in values)
        case inspect.StrType():
            return _string_expectation(wanted)
        case inspect.IntType():
            return "an integer" + _range_expectation(wanted)
        case inspect.FloatType():
            return "a finite number" + _range_expectation(wanted)
        case inspect.ListType(item_type=item):
            least = f" with at least {wanted.min_length} item" if wanted.min_length else ""
            return f"a list{least}, each {expectation(item)}"
        case inspect.DictType(value_type=member):
            return f"a table, each value {expectation(member)}"
    return "a table"


def without_none(wanted: inspect.UnionType) -> inspect.Type:
    """Return the one type that stands beside None in an optional field; TOML itself has no null."""
    (inner,) = (option for option in wanted.types if not isinstance(option, inspect.NoneType))
    return inner


def _any_broken(values: Iterable[object]) -> bool:
    return any(value is BROKEN for value in values)


def _string_fits(raw: str, wanted: inspect.StrType) -> bool:
    long_enough = wanted.min_length is None or len(raw) >= wanted.min_length
    short_enough = wanted.max_length is None or len(raw) <= wanted.max_length
    # A `$` also matches before a final newline, which no pattern of the schema means.
    matches = wanted.pattern is None or (re.search(wanted.pattern, raw) is not None and not raw.endswith("\n"))
    return long_enough and short_enough and matches


def _in_range(raw: Any, wanted: inspect.IntType | inspect.FloatType) -> bool:
    return bool(
        (wanted.ge is None or raw >= wanted.ge)
        and (wanted.gt is None or raw > wanted.gt)
        and (wanted.le is None or raw <= wanted.le)
        and (wanted.lt is None or raw < wanted.lt)
    )


def _string_expectation(wanted: inspect.StrType) -> str:
    length = ""
    if wanted.min_length and wanted.max_length:
        length = f" of {wanted.min_length} to {wanted.max_length} characters"
    elif wanted.max_length:
        length = f" of at most {wanted.max_length} characters"
    elif wanted.min_length:
        length = f" of at least {wanted.min_length} characters"
    return f"a string{length}" + (f" that matches {wanted.pattern}" if wanted.pattern else "")


def _range_expectation(wanted: inspect.IntType | inspect.FloatType) -> str:
    low = f" from {wanted.ge}" if wanted.ge is not None else f" above {wanted.gt}" if wanted.gt is not None else ""
    high = f" up to {wanted.le}" if wanted.le is not None else f" below {wanted.lt}" if wanted.lt is not None else ""
    return low + high
