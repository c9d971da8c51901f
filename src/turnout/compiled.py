"""Finds the compiled form of the hot path, and uses it only while it is the same as the source (docs/adr/0004).

`tools/compile.py` leaves one shared library and one small extension per module in a folder beside the package, with a
manifest of the digests of the sources they were made from. A source that has changed since makes the whole set stale:
then, as on a machine without a compiler, the same code runs interpreted. `TURNOUT_PURE=1` asks for that.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent
FOLDER = PACKAGE.parent.parent / "build" / "compiled" / f"{sys.implementation.cache_tag}-{sys.platform}"
"""Where the compiled modules of a source checkout are kept, per interpreter."""
MANIFEST = "manifest.json"


def digest(path: Path) -> str:
    """Return what a source file is recognised by."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def state() -> str:
    """Tell how this process runs the hot path: `compiled`, or `interpreted` and why."""
    return _state


class _Finder:
    """Answers for the compiled modules only; every other import goes its usual way."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
        self._files = {name: str(folder / (name.replace(".", "/") + suffix)) for name in names}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where a compiled module is (`importlib.abc.MetaPathFinder`)."""
        del path, target
        file = self._files.get(name)
        if file is None:
            return None
        loader = importlib.machinery.ExtensionFileLoader(name, file)
        return importlib.util.spec_from_file_location(name, file, loader=loader)


def _use() -> str:
    if os.environ.get("TURNOUT_PURE", "") not in {"", "0"}:
        return "interpreted: TURNOUT_PURE is set"
    try:
        made_of: dict[str, str] = json.loads((FOLDER / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return "interpreted: not compiled (make compiled)"
    root = PACKAGE.parent
    for name, expected in made_of.items():
        source = root / (name.replace(".", "/") + ".py")
        if not source.is_file() or digest(source) != expected:
            return f"interpreted: {name} has changed since it was compiled (make compiled)"
    # The library that holds the code of all modules is found by its own name.
    sys.path.append(str(FOLDER))
    sys.meta_path.insert(0, _Finder(FOLDER, list(made_of)))
    return "compiled"


_state = _use()
