"""What the door remembers over a restart: which engines it had and what each was told last.

An unmodified engine registers once only, so a door that starts anew has to look for those that still run. The file is
replaced whole, and one that cannot be read is worth as much as none.
"""

from __future__ import annotations

import asyncio
import math
import os
from pathlib import Path
from typing import Any

import msgspec

from turnout.coordinator.control import State
from turnout.coordinator.records import Report
from turnout.coordinator.roster import LOST_MAX, Roster

_VERSION = 1
_BYTES_MAX = 4_194_304
_EVERY_S = 1.0


class Known(msgspec.Struct, frozen=True, gc=False):
    """One engine: its identity in hex, and its control state."""

    identity: str
    control: State


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """One roster."""

    v: int
    state: State
    engines: list[Known]


class Keeper:
    """Reads the file once and keeps it up to date: one writing at a time, at most one a second, off the loop."""

    def __init__(self, path: str, roster: Roster, report: Report) -> None:
        self._path = Path(path)
        self._roster = roster
        self._report = report
        self._version = -1
        self._due = 0.0
        self._writing: asyncio.Future[None] | None = None

    async def restore(self, now: float) -> None:
        """Look for the engines of the door that ran before."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(None, load, self._path)
        except (OSError, ValueError) as error:
            self._report("error", "coordinator_snapshot_unusable", self._reason(error))
            return
        if found is not None:
            restore(found, self._roster, now)

    def keep(self, now: float) -> None:
        """Write the engines when they have changed."""
        is_busy = self._writing is not None and not self._writing.done()
        if now >= self._due and not is_busy and self._version != self._roster.version:
            self._due = now + _EVERY_S
            self._version = self._roster.version
            loop = asyncio.get_running_loop()
            self._writing = loop.run_in_executor(None, self._write, snapshot_of(self._roster))

    async def finish(self) -> None:
        """Write what is not written yet."""
        if self._writing is not None:
            await self._writing
        self.keep(math.inf)
        if self._writing is not None:
            await self._writing

    def _write(self, snapshot: Snapshot) -> None:
        try:
            save(snapshot, self._path)
        except OSError as error:
            self._report("error", "coordinator_snapshot_unwritten", self._reason(error))

    def _reason(self, error: Exception) -> dict[str, Any]:
        return {"path": str(self._path), "reason": str(error)[:200]}


def snapshot_of(roster: Roster) -> Snapshot:
    """Take the engines that are there or may come back; those that were stopped will not."""
    controls = {identity: lost.control for identity, lost in roster.lost.items()}
    controls |= {identity: engine.control for identity, engine in roster.live.items()}
    known = [
        Known(identity.hex(), control)
        for identity, control in sorted(controls.items())
        if control is not State.STOPPING
    ]
    return Snapshot(_VERSION, roster.state, known[:LOST_MAX])


def restore(snapshot: Snapshot, roster: Roster, now: float) -> None:
    """Look for these engines, and stand where the door stood: its engines were told so."""
    if snapshot.state is not State.STOPPING:
        roster.state = snapshot.state
    for known in snapshot.engines:
        roster.seek(bytes.fromhex(known.identity), known.control, now)


def load(path: Path) -> Snapshot | None:
    """Read a snapshot; None when there is no file. Raises OSError or ValueError when it cannot be used."""
    try:
        with path.open("rb") as file:
            raw = file.read(_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    if len(raw) > _BYTES_MAX:
        raise ValueError(f"has more than {_BYTES_MAX} bytes")
    snapshot = msgspec.json.decode(raw, type=Snapshot)
    if snapshot.v != _VERSION:
        raise ValueError(f"is of version {snapshot.v}, expected {_VERSION}")
    for known in snapshot.engines:
        bytes.fromhex(known.identity)
    return snapshot


def save(snapshot: Snapshot, path: Path) -> None:
    """Replace the file. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(msgspec.json.encode(snapshot))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
