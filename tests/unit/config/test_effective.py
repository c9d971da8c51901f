from __future__ import annotations

import tomllib
from pathlib import Path

from turnout.config import load
from turnout.config.effective import render

TEXT = """\
[auth]
mode = "open"
[[endpoint]]
name = "a"
url = "http://h:1"
models = ["m", "n"]
api_key = "sk-secret"
served_as = { m = "M \\"x\\"", "n" = "N" }
"""


def test_the_rendering_is_toml_that_means_the_same(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(TEXT, encoding="utf-8")
    loaded = load(file, {})
    again = tmp_path / "again.toml"
    again.write_text(render(loaded).replace('"***"', '"sk-secret"'), encoding="utf-8")
    assert load(again, {}).config == loaded.config


def test_each_line_shows_its_origin_and_no_credential(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(TEXT, encoding="utf-8")
    text = render(load(file, {"TURNOUT__LOG__LEVEL": "debug"}))
    tomllib.loads(text)
    rows = {line.partition(" = ")[0]: line.rpartition("  # ")[2] for line in text.splitlines() if " = " in line}
    assert (rows["level"], rows["mode"], rows["idle_max"]) == ("environment", f"{file}:2", "default")
    assert "# context_max is not set" in text
    assert "sk-secret" not in text
    assert 'api_key = "***"' in text
