"""What a clone must hold: no path of one machine, a lock that anybody can install, documents that hold."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import turnout

ROOT = Path(__file__).parents[2]
TEXT_SUFFIXES = {".py", ".md", ".toml", ".lock", ".sh", ".yaml", ".yml", ".ini", ".cfg", ".mako", ".json", ""}
# Spelled in two parts, so that this file does not find itself.
MACHINE_PATH = re.compile(r"(?<![A-Za-z0-9_./-])/(?:wo" r"rk|fa" r"rm|ro" r"ot|ho" r"me)/[A-Za-z.]")
SKIPPED = {".git", ".venv", ".hypothesis", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".import_linter_cache"}


def texts() -> list[Path]:
    return [
        path
        for path in sorted(ROOT.rglob("*"))
        if path.is_file() and path.suffix in TEXT_SUFFIXES and not SKIPPED.intersection(path.relative_to(ROOT).parts)
    ]


def test_no_path_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_the_lock_pins_every_package_with_hashes_and_names_no_index() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"https?:|file:|--index|--extra-index|--find-links", text)
    blocks = re.findall(r"^([A-Za-z0-9._-]+==[^ ;\\]+)([^\n]*(?:\n {4}[^\n]*)*)", text, re.MULTILINE)
    assert blocks
    assert [name for name, rest in blocks if "--hash=sha256:" not in rest] == []


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    locked = set(
        re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    )
    names = {re.split(r"[<>=!~ \[]", requirement)[0].lower() for requirement in wanted}
    assert names - locked == set()


def test_every_ignored_lint_rule_has_its_reason_on_the_same_line() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if re.match(r'\s+"[A-Z]+[0-9]*",', line)]
    assert rules
    assert [line.strip() for line in rules if not re.search(r"# \S+ \S+", line)] == []


def test_relative_links_of_the_documents_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)} → {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_files_that_the_life_of_a_request_names_exist() -> None:
    page = (ROOT / "docs" / "life-of-a-request.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", page)
    assert named
    assert [name for name in named if not (ROOT / "src" / "turnout" / name).exists()] == []


def test_the_changelog_knows_the_version_or_what_is_unreleased() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"[{turnout.__version__}]" in text or "[Unreleased]" in text
