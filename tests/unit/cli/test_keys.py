from __future__ import annotations

import hashlib
import tomllib

import msgspec
import pytest
from typer.testing import CliRunner

from turnout.cli.keys import app, digest_of, new_key
from turnout.core import options

RUN = CliRunner()


def test_a_new_key_has_the_mark_and_256_bits() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert {key[:3] for key in keys} == {"tt-"}
    assert {len(key) for key in keys} == {3 + 43}  # 32 bytes as base64 without padding


def test_a_digest_is_the_sha256_of_the_whole_key() -> None:
    assert digest_of("tt-x") == "sha256:" + hashlib.sha256(b"tt-x").hexdigest()


def test_new_prints_key_digest_and_a_table_that_the_configuration_accepts() -> None:
    lines = RUN.invoke(app, ["new", "--name", 'my "laptop"', "--tenant", "research"]).output.splitlines()
    key = lines[0].split()[1]
    (row,) = tomllib.loads("\n".join(lines[lines.index("[[key]]") :]))["key"]
    parsed = msgspec.convert(row, options.Key)
    assert (parsed.name, parsed.tenant) == ('my "laptop"', "research")
    assert (parsed.digest, parsed.prefix) == (digest_of(key), key[:8])
    assert lines[1].split()[1] == parsed.digest


def test_the_table_does_not_hold_the_key() -> None:
    lines = RUN.invoke(app, ["new"]).output.splitlines()
    key = lines[0].split()[1]
    assert not [line for line in lines[1:] if key in line]


@pytest.mark.parametrize(("arguments", "stdin"), [(["tt-x"], None), ([], "tt-x"), ([], "tt-x\n"), ([], "tt-x\r\n")])
def test_hash_reads_an_argument_or_a_line(arguments: list[str], stdin: str | None) -> None:
    assert RUN.invoke(app, ["hash", *arguments], input=stdin).output == f"{digest_of('tt-x')}\n"


@pytest.mark.parametrize("key", ["", " ", "a b", "schlüssel", "x" * 257])
def test_k5_hash_refuses_what_the_wire_refuses(key: str) -> None:
    result = RUN.invoke(app, ["hash"], input=key)
    assert result.exit_code == 2
    assert "expected a key of 1 to 256 ASCII characters" in result.output
    assert not key.strip() or key not in result.output
