"""Load reports that the ranks of one engine push: together a report, once each rank has a fresh one (engines §2)."""

from __future__ import annotations

from turnout.core.fleet.report import Report
from turnout.engines.load_reports import LoadStat, joined


class LoadPushes:
    """Keeps the latest of each rank. They are gauges: an older one is worth nothing, a lost one is replaced."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._latest: dict[tuple[str, int], tuple[float, LoadStat]] = {}

    def heard(self, source: tuple[str, int], stat: LoadStat, now: float) -> None:
        """Take in one report."""
        self._latest[source] = (now, stat)

    def report(self, now: float, max_age_s: float) -> Report | None:
        """Return what all ranks say together; None while one of them is unknown."""
        fresh = [stat for at, stat in self._latest.values() if now - at <= max_age_s]
        return joined(fresh) if len(fresh) == self._ranks else None
