"""Directories of versions: listing, latest, legacy, several at once, reload, immutability; and writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnout.bundles.directory import BundleDirectory, is_version
from turnout.bundles.fault import BundleError
from turnout.bundles.library import Library
from turnout.bundles.writing import promote, write
from turnout.core.selection.bundle import Price

Files = dict[str, bytes]


def put(root: Path, version: str, files: Files) -> None:
    folder = root / version
    folder.mkdir(parents=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)


@pytest.fixture
def root(tmp_path: Path, files: Files) -> Path:
    for version in ("v0.53", "v0.9", "legacy/v0.2", "legacy/v0.9"):
        put(tmp_path, version, files)
    (tmp_path / "latest").write_text(" v0.53\n")
    return tmp_path


def test_ListVersions_FlattensLegacyAndOmitsPseudoName(root: Path) -> None:
    (root / "latest.d").write_text("")
    (root / ".writing-1").mkdir()
    assert BundleDirectory(root).versions() == ["v0.2", "v0.9", "v0.53"]
    assert BundleDirectory(root / "nowhere").versions() == []


def test_ResolveVersion_LegacyBundleIsReachable(root: Path) -> None:
    directory = BundleDirectory(root)
    assert directory.resolve("v0.2") == root / "legacy" / "v0.2"
    assert directory.resolve("v0.9") == root / "v0.9"
    assert directory.resolve("latest") == root / "v0.53"


@pytest.mark.parametrize("name", ["..", "../x", "latest", "legacy", "", "a/b", ".hidden", "x" * 65, "a b", "v1\n"])
def test_what_names_no_version(root: Path, name: str) -> None:
    assert not is_version(name)
    if name != "latest":
        with pytest.raises(BundleError, match=r"one of the versions v0\.2, v0\.9, v0\.53"):
            BundleDirectory(root).resolve(name)


@pytest.mark.parametrize("content", [None, "", "  \n", "latest", "../v0.9", "legacy"])
def test_latest_must_name_a_version(root: Path, content: str | None) -> None:
    (root / "latest").unlink()
    if content is not None:
        (root / "latest").write_text(content)
    with pytest.raises(BundleError):
        BundleDirectory(root).latest()


def test_a_bad_default_refuses_the_start_and_a_bad_extra_is_left_out(root: Path) -> None:
    (root / "v0.9" / "model_axes.json").unlink()
    library = Library(BundleDirectory(root), build_versions=["v0.9", "v0.2", "v7"])
    loaded = library.load()
    assert (loaded.default, sorted(loaded.blends)) == ("v0.53", ["v0.2", "v0.53"])
    assert [problem.split(":")[0] for problem in loaded.problems] == ["bundle v0.9", "bundle v7"]
    with pytest.raises(BundleError, match=r"model_axes\.json"):
        Library(BundleDirectory(root), version="v0.9").load()


def test_all_versions_side_by_side(root: Path) -> None:
    loaded = Library(BundleDirectory(root), build_versions="all").load()
    assert sorted(loaded.blends) == ["v0.2", "v0.53", "v0.9"]
    assert loaded.blend() is loaded.blends["v0.53"]
    assert loaded.blend("v0.2") is loaded.blends["v0.2"]
    assert loaded.blend("v7") is None
    assert loaded.presets() == {"quality", "balanced", "cost", "speed"}


def test_reload_swaps_one_reference_and_keeps_what_did_not_change(root: Path) -> None:
    library = Library(BundleDirectory(root), build_versions=["v0.9"])
    before = library.load()
    assert library.reload() == "unchanged"
    assert library.current is before
    (root / "latest").write_text("v0.9")
    assert library.reload() == "loaded"
    after = library.current
    assert after is not None
    assert (before.default, after.default) == ("v0.53", "v0.9")
    assert after.blends["v0.9"] is before.blends["v0.9"]


def test_a_failed_reload_keeps_the_old_state(root: Path) -> None:
    library = Library(BundleDirectory(root))
    before = library.load()
    (root / "latest").write_text("gone")
    with pytest.raises(BundleError, match="no such version"):
        library.reload()
    assert library.current is before


def test_other_bytes_under_a_loaded_name_are_refused(root: Path) -> None:
    library = Library(BundleDirectory(root), build_versions=["v0.9"])
    before = library.load()
    path = root / "v0.9" / "metadata.yaml"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(BundleError, match="bundle_mutated"):
        library.reload()
    assert library.current is before


def test_the_price_book_in_force_wins_and_is_resolved_when_it_changes(root: Path) -> None:
    book: dict[str, Price] = {}
    library = Library(BundleDirectory(root), prices=lambda: book)
    first = library.load().blends["v0.53"].bundle.axes
    assert first is not None
    assert first.price_in[0] == 140_000
    book["a"] = Price(7, 8)
    assert library.reload() == "loaded"
    assert library.current is not None
    after = library.current.blends["v0.53"].bundle.axes
    assert after is not None
    assert (after.price_in[0], after.price_out[0]) == (7, 8)


def test_a_version_appears_whole_and_is_never_replaced(tmp_path: Path, files: Files) -> None:
    directory = BundleDirectory(tmp_path / "new")
    folder = write(directory, "v1", files)
    assert {path.name for path in folder.iterdir()} == set(files)
    with pytest.raises(BundleError, match="a new name: versions are immutable"):
        write(directory, "v1", files)
    with pytest.raises(BundleError, match="a version name"):
        write(directory, "legacy", files)
    with pytest.raises(BundleError, match="centroids"):
        write(directory, "v2", {name: raw for name, raw in files.items() if name != "centroids.bin"})
    assert [path.name for path in directory.root.iterdir()] == ["v1"]


def test_promote_names_only_what_loads(root: Path) -> None:
    directory = BundleDirectory(root)
    promote(directory, "v0.2")
    assert directory.latest() == "v0.2"
    (root / "v0.9" / "model_registry.json").unlink()
    with pytest.raises(BundleError):
        promote(directory, "v0.9")
    assert directory.latest() == "v0.2"
