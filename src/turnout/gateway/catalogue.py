"""Which models exist and what they are called (request-path §6): exact ids and one step of aliases, nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from turnout.core.options import Model, Timeout


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One catalogue model."""

    id: str
    chars_per_token: float = 4.0
    weight_version: str = ""
    safety: str = ""
    hedge: bool = False
    fallback: tuple[str, ...] = ()
    timeout: Timeout | None = None
    """The model's own time-outs; None: those of everybody."""


class Catalogue:
    """The models of one configuration snapshot: configured ones, and those that only endpoints name."""

    def __init__(
        self, models: Iterable[Model], served: Iterable[str], default: str, timeout: Timeout | None = None
    ) -> None:
        self.default = default
        self._timeout = timeout or Timeout()
        self._entries = {name: Entry(name) for name in served}
        self._names: dict[str, str] = {name: name for name in self._entries}
        for model in models:
            self._entries[model.id] = Entry(
                model.id,
                model.chars_per_token,
                model.weight_version,
                model.stream_safety or "",
                model.hedge,
                tuple(model.fallback),
                _own_timeouts(model, self._timeout),
            )
            self._names[model.id] = model.id
            for alias in model.aliases:
                self._names[alias] = model.id

        all_of_them = [self._timeout, *(entry.timeout for entry in self._entries.values() if entry.timeout is not None)]
        self.quickest_s = min(
            seconds
            for one in all_of_them
            for name, seconds in msgspec.structs.asdict(one).items()
            if name not in _LATER
        )
        """The earliest instant after its start at which any time-out of an attempt can pass."""

    def resolve(self, name: str) -> str:
        """Return the id that a client's model name means, byte for byte; "" for an unknown one (M1 to M4)."""
        return self._names.get(name, "")

    def entry(self, model: str) -> Entry:
        """Return the entry of a resolved id."""
        return self._entries[model]

    def knows(self, model: str) -> bool:
        """Tell whether there is such a model."""
        return model in self._entries

    def timeouts(self, model: str) -> Timeout:
        """Return the time-outs of a resolved id."""
        return self._entries[model].timeout or self._timeout

    def ids(self) -> list[str]:
        """Return all ids, sorted."""
        return sorted(self._entries)


# Not those of an attempt's answer: a connection has a timer of its own, nobody is asked to answer within the most, and
# the pace of an answer is no time.
_LATER = ("connect_s", "response_max_s", "body_min_bytes_per_s")


def _own_timeouts(model: Model, shared: Timeout) -> Timeout | None:
    names = ("first_token_s", "first_token_failover_s", "stall_s", "content_stall_s")
    own = {name: value for name in names if (value := getattr(model, name)) is not None}
    return msgspec.structs.replace(shared, **own) if own else None
