"""The configuration in force, as TOML that can be pasted back, with the origin of each value beside it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from turnout.config.errors import HIDDEN, literal
from turnout.config.lines import child
from turnout.config.load import Loaded


def render(loaded: Loaded) -> str:
    """Write every value with its origin; credentials as ***."""
    return "\n".join(_tables(loaded)).lstrip("\n") + "\n"


def _tables(loaded: Loaded) -> Iterator[str]:
    for name in loaded.config.__struct_fields__:
        section = getattr(loaded.config, name)
        if isinstance(section, msgspec.Struct):
            yield from ("", f"[{name}]", *_fields(name, section, loaded.origins))
        for index, element in enumerate(section if isinstance(section, list) else []):
            yield from ("", f"[[{name}]]", *_fields(f"{name}[{index}]", element, loaded.origins))


def _fields(path: str, section: msgspec.Struct, origins: dict[str, str]) -> Iterator[str]:
    rows = []
    for name in section.__struct_fields__:
        value = getattr(section, name)
        shown = HIDDEN if name == "api_key" and value else value
        row = f"# {name} is not set" if value is None else f"{name} = {literal(shown)}"
        rows.append((row, origins[child(path, name)]))
    width = min(max(len(row) for row, _ in rows), 60)
    for row, origin in rows:
        yield f"{row:<{width}}  # {origin}"
