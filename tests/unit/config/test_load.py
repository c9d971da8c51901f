from __future__ import annotations

from pathlib import Path

import pytest

from turnout.config import ConfigError, load

SMALLEST = """\
[auth]
mode = "open"

[[endpoint]]
name = "gpu-0"
url = "http://127.0.0.1:8000"
models = ["m"]
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "turnout.toml"
    file.write_text(text, encoding="utf-8")
    return file


def problems(file: Path, environ: dict[str, str] | None = None) -> list[str]:
    """Every problem of a file as `line: message`, the folder cut off."""
    with pytest.raises(ConfigError) as caught:
        load(file, environ or {})
    return [str(problem).replace(f"{file.parent}/", "") for problem in caught.value.problems]


def test_smallest_file_has_defaults_everywhere_else(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, SMALLEST), {})
    assert loaded.config.endpoint[0].name == "gpu-0"
    assert loaded.config.server.listen == "127.0.0.1:8080"
    assert loaded.config.endpoint[0].max_in_flight is None


def test_each_value_has_an_origin(tmp_path: Path) -> None:
    file = write(tmp_path, SMALLEST)
    origins = load(file, {"TURNOUT__LOG__LEVEL": "debug"}).origins
    assert origins["auth.mode"] == f"{file}:2"
    assert origins["endpoint[0].models"] == f"{file}:7"
    assert origins["log.level"] == "environment"
    assert origins["timeout.total_s"] == "default"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("listn = 1", "server.listn = 1: expected a known key; did you mean listen?"),
        ("body_max_bytes = true", "server.body_max_bytes = true: expected an integer from 1 up to 1099511627776"),
        ("body_max_bytes = 1.0", "server.body_max_bytes = 1.0: expected an integer from 1 up to 1099511627776"),
        ("headers_max = 0", "server.headers_max = 0: expected an integer from 1 up to 2147483647"),
        ("idle_s = nan", "server.idle_s = nan: expected a finite number above 0 up to 86400"),
        ("idle_s = inf", "server.idle_s = inf: expected a finite number above 0 up to 86400"),
        ("idle_s = -inf", "server.idle_s = -inf: expected a finite number above 0 up to 86400"),
        ("idle_s = true", "server.idle_s = true: expected a finite number above 0 up to 86400"),
        ('idle_s = "5"', 'server.idle_s = "5": expected a finite number above 0 up to 86400'),
        ("listen = 8080", "server.listen = 8080: expected a string"),
        ("listen = [1]", "server.listen = [1]: expected a string"),
        ("listen = {a = 1}", "server.listen = {a = 1}: expected a string"),
    ],
)
def test_a_wrong_value_is_named_with_file_line_key_value_and_expectation(
    tmp_path: Path, line: str, message: str
) -> None:
    assert problems(write(tmp_path, f"{SMALLEST}\n[server]\n{line}\n")) == [f"turnout.toml:10: {message}"]


def test_an_integer_too_large_for_any_float_is_out_of_range(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, f"{SMALLEST}\n[server]\nidle_s = 1{'0' * 400}\n"))
    assert found.startswith("turnout.toml:10: server.idle_s = 1000")
    assert len(found) < 200


def test_an_integer_is_a_fine_number(tmp_path: Path) -> None:
    value = load(write(tmp_path, f"{SMALLEST}\n[server]\nidle_s = 5\n"), {}).config.server.idle_s
    assert (value, type(value)) == (5.0, float)


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
surprise = 1
[timeout]
total_s = 0
[[endpoint]]
name = "a b"
url = "http://x:1"
models = ["m", 3]
[endpoint.served_as]
m = 4
[[key]]
name = "k"
"""
    found = [problem.split(": ")[0] for problem in problems(write(tmp_path, text), {"TURNOUT__LOG__LEVEL": "loud"})]
    assert found == [
        "environment TURNOUT__LOG__LEVEL",
        "turnout.toml:1",
        "turnout.toml:3",
        "turnout.toml:5",
        "turnout.toml:7",
        "turnout.toml:9",
        "turnout.toml:10",
        "turnout.toml:10",
    ]


@pytest.mark.parametrize(
    "text", ["server = 1", "endpoint = 1", "endpoint = [1]", "[endpoint]\nname = 'a'", "[[server]]"]
)
def test_a_table_of_the_wrong_shape_is_a_problem(tmp_path: Path, text: str) -> None:
    assert problems(write(tmp_path, text))[0].startswith("turnout.toml:1: ")


def test_invalid_toml_keeps_its_line(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, "[server]\nlisten =\n"))
    assert found == "turnout.toml:2: file: expected valid TOML (Invalid value)"


def test_text_that_is_not_utf8_keeps_its_line(tmp_path: Path) -> None:
    file = tmp_path / "turnout.toml"
    file.write_bytes(b"[server]\nlisten = '\xff'\n")
    assert problems(file) == ["turnout.toml:2: file: expected UTF-8 text"]


def test_a_document_nested_too_deep_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, f"a = {'[' * 5000}{']' * 5000}"))
    assert found.startswith("turnout.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (found,) = problems(tmp_path / "absent.toml")
    assert found == "absent.toml: file: expected a readable file (No such file or directory)"


def test_without_a_file_the_environment_alone_is_read() -> None:
    with pytest.raises(ConfigError, match=r"configuration: endpoint: expected at least one"):
        load(None, {"TURNOUT__AUTH__MODE": "open"})


@pytest.mark.parametrize("field", ["digest", "prefix"])
def test_a_key_pasted_into_the_wrong_field_is_not_shown(tmp_path: Path, field: str) -> None:
    text = f'{SMALLEST}\n[[key]]\nname = "k"\ntenant = "t"\n{field} = "tt-very-secret"\n'
    assert "secret" not in "".join(problems(write(tmp_path, text)))


@pytest.mark.parametrize(
    "text",
    [
        '[[endpoint]]\napi_kee = "sk-secret"',
        '[[endpoint]]\nurl = "http://me:sk-secret@host:1"',
        '[[key]]\nkey = "sk-secret"',
        '[api]\nkey = "sk-secret"',
        'password = "sk-secret"',
        '[[endpoint]]\napi_key = ["sk-secret"]',
    ],
)
def test_what_may_be_a_credential_is_never_shown(tmp_path: Path, text: str) -> None:
    assert "sk-secret" not in "".join(problems(write(tmp_path, text)))


def test_a_credential_is_read_from_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path, f'{SMALLEST}api_key = "Bearer-${{TOKEN}}"\n')
    assert load(file, {"TOKEN": "abc"}).config.endpoint[0].api_key == "Bearer-abc"


@pytest.mark.parametrize("environ", [{}, {"TOKEN": ""}])
def test_a_credential_whose_variable_is_not_set_is_a_problem(tmp_path: Path, environ: dict[str, str]) -> None:
    file = write(tmp_path, f'{SMALLEST}api_key = "${{TOKEN}}"\n')
    expected = "turnout.toml:8: endpoint[0].api_key = ${TOKEN}: expected TOKEN to be set in the environment"
    assert problems(file, environ) == [expected]
