"""The bundle directory: which versions there are, where each one lies, what `latest` names, and a version's bytes.

Versions are immutable: whoever has loaded one and meets other bytes under its name keeps what it has.
"""

from __future__ import annotations

import re
from pathlib import Path

from turnout.bundles.fault import BundleError
from turnout.bundles.reading import BYTES_MAX, FILES

LATEST, LEGACY = "latest", "legacy"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGITS = re.compile(r"(\d+)")


def is_version(name: str) -> bool:
    """Tell whether a string can name a version."""
    return _NAME.fullmatch(name) is not None and name not in (LATEST, LEGACY)


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return the sort key of names with numbers in them: v0.9 before v0.53 before v0.53-a."""
    parts = _DIGITS.split(name)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts if part)


class BundleDirectory:
    """One `bundle_dir`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def versions(self) -> list[str]:
        """Return all versions, of the root and of `legacy/`, each once, in natural order."""
        found = set()
        for folder in (self.root, self.root / LEGACY):
            if folder.is_dir():
                found |= {entry.name for entry in folder.iterdir() if entry.is_dir() and is_version(entry.name)}
        return sorted(found, key=natural)

    def latest(self) -> str:
        """Return the version that the file `latest` names.

        Raises:
            BundleError: missing, empty, no version name, or itself `latest`.

        """
        path = self.root / LATEST
        try:
            name = path.read_bytes()[:256].decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no UTF-8"
            raise BundleError(LATEST, LATEST, "", reason, "a file with the name of a version") from None
        if not is_version(name):
            raise BundleError(LATEST, LATEST, "", name, "the name of a version")
        return name

    def resolve(self, version: str) -> Path:
        """Return a version's folder: in the root, else in `legacy/`; `latest` is read from its file."""
        if version == LATEST:
            version = self.latest()
        if is_version(version):
            for folder in (self.root / version, self.root / LEGACY / version):
                if folder.is_dir():
                    return folder
        known = ", ".join(self.versions()) or "none"
        raise BundleError(version, "", "", "no such version", f"one of the versions {known}")

    def read(self, version: str) -> tuple[str, dict[str, bytes]]:
        """Return a version's name and the bytes of its known files.

        Raises:
            BundleError: no such version, or a file that cannot be read or is too large.

        """
        folder = self.resolve(version)
        files = {}
        for name in FILES:
            path = folder / name
            try:
                if not path.is_file():
                    continue
                if path.stat().st_size > BYTES_MAX:
                    raise BundleError(folder.name, name, "size", path.stat().st_size, f"at most {BYTES_MAX} bytes")
                files[name] = path.read_bytes()
            except OSError as error:
                raise BundleError(folder.name, name, "", error.strerror, "a readable file") from None
        return folder.name, files
