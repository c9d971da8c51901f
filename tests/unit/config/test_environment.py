from __future__ import annotations

import pytest
from msgspec import inspect

from turnout.config.environment import expand, overlay
from turnout.config.schema import Config

SCHEMA = inspect.type_info(Config)


def laid_over(raw: dict[str, object], **environ: str) -> tuple[dict[str, object], list[str]]:
    assert isinstance(SCHEMA, inspect.StructType)
    merged, _, problems = overlay(raw, environ, SCHEMA)
    return merged, [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("variable", "text", "table", "field", "value"),
    [
        ("TURNOUT__SERVER__LISTEN", "[::1]:1", "server", "listen", "[::1]:1"),
        ("TURNOUT__SERVER__HEADERS_MAX", "7", "server", "headers_max", 7),
        ("TURNOUT__SERVER__IDLE_S", "1.5", "server", "idle_s", 1.5),
        ("TURNOUT__PREFIX__TENANT_SALT", "true", "prefix", "tenant_salt", True),
        ("TURNOUT__PREFIX__MAX_BLOCKS", "0", "prefix", "max_blocks", 0),
        ("TURNOUT__MODELS__DEFAULT", "", "models", "default", ""),
    ],
)
def test_a_variable_is_read_as_the_type_of_its_field(
    variable: str, text: str, table: str, field: str, value: object
) -> None:
    assert laid_over({}, **{variable: text}) == ({table: {field: value}}, [])


def test_the_environment_wins_and_leaves_the_other_fields_and_the_input_alone() -> None:
    raw: dict[str, object] = {"server": {"listen": "a:1", "idle_s": 3}}
    merged, _ = laid_over(raw, TURNOUT__SERVER__LISTEN="b:2")
    assert merged == {"server": {"listen": "b:2", "idle_s": 3}}
    assert raw == {"server": {"listen": "a:1", "idle_s": 3}}


def test_other_variables_are_nobodys_business() -> None:
    assert laid_over({}, TURNOUT="x", TURNOUT_LOG="y", PATH="z") == ({}, [])


@pytest.mark.parametrize(
    ("variable", "text", "part"),
    [
        ("TURNOUT__SERVR__LISTEN", "x", "TABLE one of server, relay"),
        ("TURNOUT__SERVER__LISTN", "x", "FIELD one of listen, admin_listen"),
        ("TURNOUT__SERVER", "x", "FIELD one of listen"),
        ("TURNOUT__", "x", "TABLE one of server"),
        ("TURNOUT__ENDPOINT__0__URL", "x", "[[endpoint]] can only be set in the file"),
        ("TURNOUT__SERVER__HEADERS_MAX", "1_000", "an integer from 1"),
        ("TURNOUT__SERVER__HEADERS_MAX", "1.0", "an integer from 1"),
        ("TURNOUT__SERVER__HEADERS_MAX", "9" * 5000, "an integer from 1"),
        ("TURNOUT__SERVER__IDLE_S", "soon", "a finite number"),
        ("TURNOUT__PREFIX__TENANT_SALT", "yes", "true or false"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(variable: str, text: str, part: str) -> None:
    merged, (problem,) = laid_over({}, **{variable: text})
    assert merged == {}
    assert problem.startswith(f"environment {variable}: ")
    assert part in problem


def test_each_reference_is_expanded_and_each_missing_one_named() -> None:
    assert expand("${A}-${B}-$C-${}", {"A": "1", "C": "3"}) == ("1--$C-${}", ["B"])


def test_an_expanded_value_is_not_expanded_again() -> None:
    assert expand("${A}", {"A": "${B}", "B": "2"}) == ("${B}", [])
