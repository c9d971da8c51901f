"""Which models exist and what they are called (request-path §6): exact ids and one step of aliases, nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from turnout.core.options import Model


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One catalogue model."""

    id: str
    chars_per_token: float = 4.0
    weight_version: str = ""


class Catalogue:
    """The models of one configuration snapshot: configured ones, and those that only endpoints name."""

    def __init__(self, models: Iterable[Model], served: Iterable[str], default: str) -> None:
        self.default = default
        self._entries = {name: Entry(name) for name in served}
        self._names: dict[str, str] = {name: name for name in self._entries}
        for model in models:
            self._entries[model.id] = Entry(model.id, model.chars_per_token, model.weight_version)
            self._names[model.id] = model.id
            for alias in model.aliases:
                self._names[alias] = model.id

    def resolve(self, name: str) -> str:
        """Return the id that a client's model name means, byte for byte; "" for an unknown one (M1 to M4)."""
        return self._names.get(name, "")

    def entry(self, model: str) -> Entry:
        """Return the entry of a resolved id."""
        return self._entries[model]

    def ids(self) -> list[str]:
        """Return all ids, sorted."""
        return sorted(self._entries)
