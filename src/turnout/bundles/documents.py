"""Strict reading of a bundle's JSON and YAML: no NaN, no infinity, no duplicate key; complaints name the field.

A `Node` is a value with its path, so that a check that fails can say where. Numbers stay decimal until they are needed:
prices are multiplied in decimal, because binary floats turn 0.00014 × 1000 into 0.13999….
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]  # its stubs would be one more dependency

from turnout.bundles.fault import BundleError


class _Duplicate(ValueError):
    pass


class Node:
    """One value of a document, with where it stands."""

    __slots__ = ("_file", "_version", "path", "value")

    def __init__(self, version: str, file: str, value: Any, path: str = "") -> None:
        self._version, self._file, self.value, self.path = version, file, value, path

    def wrong(self, wanted: str, seen: object = None) -> NoReturn:
        """Refuse the value."""
        raise BundleError(self._version, self._file, self.path, self.value if seen is None else seen, wanted)

    def get(self, name: str) -> Node:
        """Return a member; a missing one has the value None."""
        path = f"{self.path}.{name}" if self.path else name
        return Node(self._version, self._file, self.object().get(name), path)

    def or_object(self) -> Node:
        """Return this value, or an empty object in its place when there is none."""
        return self or Node(self._version, self._file, {}, self.path)

    def items(self) -> Iterator[tuple[str, Node]]:
        """Return the members of an object."""
        for name in self.object():
            yield name, self.get(name)

    def __iter__(self) -> Iterator[Node]:
        """Return the items of an array."""
        if not isinstance(self.value, list):
            self.wrong("an array")
        for index, value in enumerate(self.value):
            yield Node(self._version, self._file, value, f"{self.path}[{index}]")

    def __bool__(self) -> bool:
        """Tell whether there is a value."""
        return self.value is not None

    def object(self) -> dict[str, Any]:
        """Return the value as an object."""
        if not isinstance(self.value, dict):
            self.wrong("an object")
        for name in self.value:
            if not isinstance(name, str):
                self.wrong("keys that are strings", name)
        found: dict[str, Any] = self.value
        return found

    def text(self) -> str:
        """Return the value as a non-empty string."""
        if not isinstance(self.value, str) or not self.value:
            self.wrong("a non-empty string")
        return str(self.value)

    def flag(self) -> bool:
        """Return the value as a boolean."""
        if not isinstance(self.value, bool):
            self.wrong("true or false")
        return bool(self.value)

    def decimal(self) -> Decimal:
        """Return the value as a finite decimal number."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
            self.wrong("a number")
        if not math.isfinite(value) or not math.isfinite(float(value)):
            self.wrong("a finite number")
        return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """Return the value as a finite float in a range."""
        found = float(self.decimal())
        if not low <= found <= high:
            self.wrong(f"a number in [{low:g}, {high:g}]")
        return found

    def whole(self, low: int, high: int) -> int:
        """Return the value as an integer in a range."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not low <= self.value <= high:
            self.wrong(f"an integer in [{low}, {high}]")
        return int(self.value)


def read_json(version: str, file: str, raw: bytes) -> Node:
    """Parse a JSON document.

    Raises:
        BundleError: not JSON in UTF-8, a NaN or Infinity literal, or the same key twice.

    """
    try:
        value = json.loads(raw.decode(), parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_unique)
    except _Duplicate as error:
        raise BundleError(version, file, str(error), "the key twice", "each key once") from None
    except (ValueError, RecursionError, ArithmeticError) as error:
        raise BundleError(version, file, "", str(error), "strict JSON in UTF-8") from None
    return Node(version, file, value)


def read_yaml(version: str, file: str, raw: bytes) -> Node:
    """Parse a YAML document with the safe loader; duplicate keys are refused."""
    try:
        value = yaml.load(raw.decode(), Loader=_StrictLoader)  # noqa: S506 - derives from SafeLoader
    except _Duplicate as error:
        raise BundleError(version, file, str(error), "the key twice", "each key once") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BundleError(version, file, "", " ".join(str(error).split()), "YAML of plain values") from None
    return Node(version, file, value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the literal {name}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Duplicate(next(name for name in names if names.count(name) > 1))
    return found


class _StrictLoader(yaml.SafeLoader):  # type: ignore[misc]
    """SafeLoader that refuses a key which stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - signature of the base
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is no string", key_node.start_mark
                )
            if key in seen:
                raise _Duplicate(key)
            seen.add(key)
        return dict(super().construct_mapping(node, deep=deep))
