"""An option that nothing reads is a promise that nobody keeps: the reference page would document it all the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import msgspec

from turnout.config.schema import Config

SOURCE = Path(__file__).parents[2] / "src" / "turnout"


def sections(kind: Any) -> set[type[msgspec.Struct]]:
    """Every struct that a configuration is made of."""
    found: set[type[msgspec.Struct]] = set()
    open_kinds = [kind]
    while open_kinds:
        current = open_kinds.pop()
        open_kinds += get_args(current)
        if isinstance(current, type) and issubclass(current, msgspec.Struct) and current not in found:
            found.add(current)
            open_kinds += [field.type for field in msgspec.structs.fields(current)]
    return found


def test_every_option_is_read_somewhere() -> None:
    text = "\n".join(file.read_text() for file in SOURCE.rglob("*.py") if "options" not in file.stem)
    words = set(re.findall(r"\w+", text))
    named = sections(Config)
    assert len(named) > 10
    unread = [f"{s.__name__}.{f.name}" for s in named for f in msgspec.structs.fields(s) if f.name not in words]
    assert unread == []
