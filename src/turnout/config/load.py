"""File and environment in, one valid `Config` with the origin of every value out; or every problem at once.

Order: the file's tables, the environment over them, the walk against the schema, `${NAME}` in credentials, and the
checks across fields.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from turnout.config.checks import cross_checks
from turnout.config.environment import expand, overlay
from turnout.config.errors import ConfigError, Problem
from turnout.config.lines import child, key_lines
from turnout.config.schema import Config
from turnout.config.walk import BROKEN, Walk

# A configuration is written by people; more than this is the wrong file.
FILE_MAX_BYTES = 8 * 1024 * 1024


class Loaded(msgspec.Struct, frozen=True):
    """A valid configuration. `origins` maps each leaf key to `file:line`, `environment` or `default`."""

    config: Config
    origins: dict[str, str]


def load(path: Path | None, environ: Mapping[str, str]) -> Loaded:
    """Read the configuration. Raises ConfigError with every problem found; `path` None means environment only."""
    raw, lines = _read(path) if path is not None else ({}, {})
    schema = inspect.type_info(Config)
    assert isinstance(schema, inspect.StructType)
    merged, variables, problems = overlay(raw, environ, schema)

    def where(key: str) -> str:
        if key in variables:
            return f"environment {variables[key]}"
        return f"{path}:{_nearest_line(key, lines)}" if path is not None else "configuration"

    walk = Walk(where)
    config = walk.table("", merged, schema)
    problems += walk.problems
    if config is not BROKEN:
        config, unset = _expanded(config, environ)
        for key, name in unset:
            problems.append(Problem(where(key), key, f"${{{name}}}", f"{name} to be set in the environment"))
        problems += cross_checks(config, where)
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: _line_of(problem.where)))
    origins = {
        key: "environment" if key in variables else f"{path}:{lines[key]}" if key in lines else "default"
        for key in _leaves("", config)
    }
    return Loaded(config, origins)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Read and parse the file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([Problem(str(path), "file", "", f"a readable file ({error.strerror})")]) from error
    if len(data) > FILE_MAX_BYTES:
        raise ConfigError([Problem(str(path), "file", "", f"at most {FILE_MAX_BYTES} bytes")])
    try:
        text = data.decode("utf-8")
        return tomllib.loads(text), key_lines(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(f"{path}:{line}", "file", "", "UTF-8 text")]) from error
    except tomllib.TOMLDecodeError as error:
        message, line = _toml_position(str(error), data.count(b"\n") + 1)
        raise ConfigError([Problem(f"{path}:{line}", "file", "", f"valid TOML ({message})")]) from error
    except RecursionError as error:
        raise ConfigError([Problem(str(path), "file", "", "tables and lists that are not nested this deep")]) from error


def _toml_position(message: str, last_line: int) -> tuple[str, int]:
    """Take the line out of tomllib's message; at the end of the document it names none."""
    found = re.search(r" \(at line (\d+), column \d+\)", message)
    return (message.replace(found.group(), ""), int(found[1])) if found else (message, last_line)


def _line_of(where: str) -> int:
    """Order problems as the reader meets them: the environment first, then down the file."""
    _, _, line = where.rpartition(":")
    return int(line) if line.isdigit() else 0


def _nearest_line(key: str, lines: Mapping[str, int]) -> int:
    """Line of the key, else of the innermost table that holds it, else the first."""
    while key and key not in lines:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return lines.get(key, 1)


def _expanded(config: Config, environ: Mapping[str, str]) -> tuple[Config, list[tuple[str, str]]]:
    """Fill `${NAME}` in the endpoints' credentials; returns also the keys whose variable is not set."""
    unset: list[tuple[str, str]] = []
    endpoints = []
    for index, endpoint in enumerate(config.endpoint):
        credential, missing = expand(endpoint.api_key, environ)
        unset += [(f"endpoint[{index}].api_key", name) for name in missing]
        endpoints.append(msgspec.structs.replace(endpoint, api_key=credential))
    return msgspec.structs.replace(config, endpoint=endpoints), unset


def _leaves(path: str, value: object) -> list[str]:
    """Name every leaf key below `path`: structs and lists of structs are inner, anything else is a leaf."""
    if isinstance(value, msgspec.Struct):
        names = value.__struct_encode_fields__
        return [leaf for name in names for leaf in _leaves(child(path, name), getattr(value, name))]
    if isinstance(value, list) and value and isinstance(value[0], msgspec.Struct):
        return [leaf for index, item in enumerate(value) for leaf in _leaves(f"{path}[{index}]", item)]
    return [path]
