"""Reasons not to use an endpoint, each a bit of one number: the usual endpoint, with none, is tested with one look."""

from __future__ import annotations

from typing import Final

GONE: Final = 1
DRAINING: Final = 2
UNREACHABLE: Final = 4
PROBE_FAILING: Final = 8
STANDBY: Final = 16
COOLING: Final = 32
LOSING: Final = 64
SPLIT: Final = 128
EJECTED: Final = 256
REFUSED: Final = 512


class Marks:
    """The marks of one endpoint; `marks` has them all, each property is one of its bits."""

    __slots__ = ("marks",)

    def __init__(self) -> None:
        self.marks = 0

    def mark(self, bit: int, on: bool) -> None:  # noqa: FBT001 - as the properties' setters have it
        """Set or clear a mark."""
        self.marks = self.marks | bit if on else self.marks & ~bit

    @property
    def gone(self) -> bool:
        """Removed; attempts in flight may still end."""
        return self.marks & GONE != 0

    @gone.setter
    def gone(self, on: bool) -> None:
        self.mark(GONE, on)

    @property
    def draining(self) -> bool:
        """Gets nothing new, by an operator's wish."""
        return self.marks & DRAINING != 0

    @draining.setter
    def draining(self, on: bool) -> None:
        self.mark(DRAINING, on)

    @property
    def unreachable(self) -> bool:
        """Did not take or lost a connection, and no probe has reached it since."""
        return self.marks & UNREACHABLE != 0

    @unreachable.setter
    def unreachable(self, on: bool) -> None:
        self.mark(UNREACHABLE, on)

    @property
    def probe_failing(self) -> bool:
        """Fails its probes."""
        return self.marks & PROBE_FAILING != 0

    @probe_failing.setter
    def probe_failing(self, on: bool) -> None:
        self.mark(PROBE_FAILING, on)

    @property
    def standby(self) -> bool:
        """Used only when nobody else is left."""
        return self.marks & STANDBY != 0

    @standby.setter
    def standby(self, on: bool) -> None:
        self.mark(STANDBY, on)

    @property
    def cooling(self) -> bool:
        """Asked to be left alone for a while."""
        return self.marks & COOLING != 0

    @cooling.setter
    def cooling(self, on: bool) -> None:
        self.mark(COOLING, on)

    @property
    def losing(self) -> bool:
        """Said that it does not serve some model that is listed for it."""
        return self.marks & LOSING != 0

    @losing.setter
    def losing(self, on: bool) -> None:
        self.mark(LOSING, on)

    @property
    def split(self) -> bool:
        """Serves one leg only."""
        return self.marks & SPLIT != 0

    @split.setter
    def split(self, on: bool) -> None:
        self.mark(SPLIT, on)

    @property
    def ejected(self) -> bool:
        """Fails more than its siblings."""
        return self.marks & EJECTED != 0

    @ejected.setter
    def ejected(self, on: bool) -> None:
        self.mark(EJECTED, on)

    @property
    def refused(self) -> bool:
        """Refused our credential, and cools down."""
        return self.marks & REFUSED != 0

    @refused.setter
    def refused(self, on: bool) -> None:
        self.mark(REFUSED, on)
