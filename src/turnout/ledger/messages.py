"""What router and ledger's process say to each other: questions one way, answers and events the other.

Long lists travel in parts that are encoded and decoded one at a time: each is some microseconds in which no other
thread of the router runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Generic, TypeVar

import msgspec

from turnout.core import options
from turnout.core.facts import CallFact, Percentiles, RouteKey, RouteStats, Streak
from turnout.core.pricing import Price
from turnout.ledger.backend import HotRoute, Turn

T = TypeVar("T")

PART: Final = 32
"""Items per part."""
NICENESS: Final = 19
"""Of the process that answers: the router takes the core from it whenever it wants it (docs/adr/0011)."""


class Settings(msgspec.Struct, frozen=True, tag=True):
    """The first message on each channel: whose ledger it is."""

    ledger: options.Ledger
    router_id: str
    prices: str


class Check(msgspec.Struct, frozen=True, tag=True):
    """Whether the schema of the server fits."""


class Open(msgspec.Struct, frozen=True, tag=True):
    """Bring the schema up to date, import prices."""


class Write(msgspec.Struct, frozen=True, tag=True):
    """Store calls (parts of `CallFact`), in one transaction."""

    facts: list[bytes]


class Prune(msgspec.Struct, frozen=True, tag=True):
    """Sum up or delete one chunk."""


class Close(msgspec.Struct, frozen=True, tag=True):
    """Checkpoint and end."""


class Spent(msgspec.Struct, frozen=True, tag=True):
    """What keys have spent."""

    now_ms: int
    days: int


class Derive(msgspec.Struct, frozen=True, tag=True):
    """The statistics; the version of the price book is known."""

    now_ms: int
    version: int | None


class Routes(msgspec.Struct, frozen=True, tag=True):
    """Every route."""


class Rank(msgspec.Struct, frozen=True, tag=True):
    """The percentiles of the first of these routes."""

    route_ids: list[int]
    now_ms: int
    most_s: float


class HotRoutes(msgspec.Struct, frozen=True, tag=True):
    """Where the sessions of the last hour were warm."""

    now_ms: int


class Turns(msgspec.Struct, frozen=True, tag=True):
    """The newest turns."""

    since_ms: int
    most: int


Writing = Settings | Check | Open | Write | Prune | Close
Reading = Settings | Spent | Derive | Routes | Rank | HotRoutes | Turns


class Done(msgspec.Struct, frozen=True, tag=True):
    """The answer, in the form that belongs to the question."""

    result: msgspec.Raw = msgspec.Raw(b"\xc0")


class Down(msgspec.Struct, frozen=True, tag=True):
    """`SinkDownError`."""

    kind: str
    detail: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """`LedgerRefusedError`."""

    text: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Whatever else went wrong."""

    text: str


class Told(msgspec.Struct, frozen=True, tag=True):
    """An event for the operator; the answer is still to come."""

    name: str
    fields: dict[str, Any]


Answer = Done | Down | Refused | Failed | Told


class HealthParts(msgspec.Struct, frozen=True):
    """`backend.Health` in parts."""

    tool_incapable: list[bytes]
    by_route: list[bytes]
    by_endpoint: list[bytes]


class DerivedParts(msgspec.Struct, frozen=True):
    """`backend.Derived` in parts."""

    routes: list[bytes]
    models: list[bytes]
    health: HealthParts | None
    version: int | None
    prices: list[bytes] | None


class Parts(Generic[T]):
    """How a long list of one kind of items is taken apart and joined."""

    def __init__(self, items: Any) -> None:
        """`items` is the type of a list."""
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(items).decode

    def cut(self, items: Iterable[T]) -> list[bytes]:
        """Encode part by part."""
        whole = list(items)
        return [self._encode(whole[start : start + PART]) for start in range(0, len(whole), PART)]

    def joined(self, parts: Iterable[bytes]) -> list[T]:
        """Decode part by part.

        Raises:
            msgspec.DecodeError: a part is none.
        """
        return [item for part in parts for item in self._decode(part)]


FACTS: Final = Parts[CallFact](list[CallFact])
ROUTES: Final = Parts[tuple[int, RouteKey]](list[tuple[int, RouteKey]])
STATS: Final = Parts[tuple[RouteKey, RouteStats]](list[tuple[RouteKey, RouteStats]])
MODELS: Final = Parts[tuple[str, RouteStats]](list[tuple[str, RouteStats]])
KEYS: Final = Parts[RouteKey](list[RouteKey])
STREAKS: Final = Parts[tuple[RouteKey, Streak]](list[tuple[RouteKey, Streak]])
ENDPOINTS: Final = Parts[tuple[tuple[str, str], Streak]](list[tuple[tuple[str, str], Streak]])
PRICES: Final = Parts[Price](list[Price])
RANKS: Final = Parts[Percentiles](list[Percentiles])
SPENT: Final = Parts[tuple[str, str, int, int]](list[tuple[str, str, int, int]])
HOT: Final = Parts[HotRoute](list[HotRoute])
TURNS: Final = Parts[Turn](list[Turn])
