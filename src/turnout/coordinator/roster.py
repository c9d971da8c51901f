"""Which engines stand behind the door: incarnations, who may be scheduled, who has just left, who may come back.

A departed engine is out of scheduling at once; its open attempts are handed over when its grace has passed. An engine
that went without a word may still live (it registers once only), so its identity is kept and probed until it answers.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort

import msgspec

from turnout.coordinator.affinity import Chooser
from turnout.coordinator.control import State, takes_requests
from turnout.coordinator.peers import Engine
from turnout.core.kit.lru import LruMap

LOST_MAX = 1024
LOST_S = 600.0  # an engine that has not answered for this long will register when it comes
_INCARNATIONS_MAX = 65_536
_CONTESTED_REGISTRATIONS = 3
_CONTESTED_WINDOW_S = 60.0


class Departed(msgspec.Struct, frozen=True, gc=False):
    """An engine whose open attempts are still to be settled at `until`."""

    engine: Engine
    until: float


class Lost(msgspec.Struct, frozen=True, gc=False):
    """An identity that may still be there: what its engine was told last, and until when it is probed."""

    control: State
    until: float


class Roster:
    """The engines of one door, by identity."""

    def __init__(self, chooser: Chooser) -> None:
        self.state = State.RUNNING
        self.live: dict[bytes, Engine] = {}
        self.departed: dict[bytes, Departed] = {}
        self.lost: dict[bytes, Lost] = {}
        self.version = 0
        self.most = 0
        """Most engines there were at a time."""
        self._chooser = chooser
        self._identities: list[bytes] = []
        self._incarnations: LruMap[bytes, int] = LruMap(_INCARNATIONS_MAX)
        self._registered_at: LruMap[bytes, list[float]] = LruMap(LOST_MAX)
        self._eligible: list[Engine] | None = None

    def __len__(self) -> int:
        return len(self.live)

    @property
    def eligible(self) -> list[Engine]:
        """Engines that get requests, sorted by identity; not to be changed."""
        if self._eligible is None:
            found = (self.live[identity] for identity in self._identities)
            self._eligible = [
                engine for engine in found if not engine.saturated and takes_requests(self.state, engine.control)
            ]
        return self._eligible

    def rank(self, engine: Engine) -> int:
        """Place of its identity among those at the door."""
        return bisect_left(self._identities, engine.identity)

    def join(self, identity: bytes, control: State, now: float) -> Engine:
        """Take in a new incarnation, which inherits nothing. The old one, if any, has left before."""
        incarnation = (self._incarnations.peek(identity) or 0) + 1
        self._incarnations.put(identity, incarnation)
        engine = Engine(identity, incarnation, self._chooser.index.assign(now), control, now)
        self.live[identity] = engine
        insort(self._identities, identity)
        self.most = max(self.most, len(self.live))
        self.lost.pop(identity, None)
        self.changed()
        return engine

    def leave(self, engine: Engine, now: float, grace_s: float, *, may_return: bool) -> bool:
        """Take an engine out at once; False when it had left before. O(1) for the index, whatever it held."""
        if self.live.get(engine.identity) is not engine:
            return False
        del self.live[engine.identity]
        del self._identities[bisect_left(self._identities, engine.identity)]
        self._chooser.index.retire(engine.bit)
        if may_return and len(self.lost) < LOST_MAX:
            self.lost[engine.identity] = Lost(engine.control, now + LOST_S)
        self.departed[engine.identity] = Departed(engine, now + grace_s)
        self.changed()
        return True

    def speaker(self, identity: bytes) -> Engine | None:
        """Who speaks under this identity: the live engine, or a departed one that is still read."""
        engine = self.live.get(identity)
        if engine is None and identity in self.departed:
            return self.departed[identity].engine
        return engine

    def settled(self, now: float) -> list[Engine]:
        """Hand over the departed whose grace has passed."""
        over = [entry.engine for entry in self.departed.values() if entry.until <= now]
        for engine in over:
            del self.departed[engine.identity]
        return over

    def silent(self, now: float, probe_s: float) -> list[bytes]:
        """Engines that work on requests and have not been heard or probed for a while."""
        found = []
        for engine in self.live.values():
            if engine.open and now - max(engine.heard_at, engine.probed_at) >= probe_s:
                engine.probed_at = now
                found.append(engine.identity)
        return found

    def callable(self, now: float) -> list[bytes]:
        """Identities worth a probe; those silent for too long are forgotten."""
        for identity in [identity for identity, lost in self.lost.items() if lost.until < now]:
            del self.lost[identity]
        return list(self.lost)

    def settle(self, identity: bytes) -> Engine | None:
        """Hand over one departed engine before its time, because its identity is taken again."""
        entry = self.departed.pop(identity, None)
        return None if entry is None else entry.engine

    def expect(self, identities: list[bytes]) -> None:
        """Identities that may already run: they are probed as if they had been lost."""
        for identity in identities:
            if identity not in self.live and len(self.lost) < LOST_MAX:
                self.lost.setdefault(identity, Lost(State.RUNNING, math.inf))

    def seek(self, identity: bytes, control: State, now: float) -> None:
        """Probe an identity that an earlier door knew, as long as one that was lost."""
        known = self.lost.get(identity)
        if known is not None or len(self.lost) < LOST_MAX:
            self.lost[identity] = Lost(control, now + LOST_S if known is None else known.until)

    def is_contested(self, identity: bytes, now: float) -> bool:
        """Count a registration; True when this identity registered more often than restarts explain."""
        times = [at for at in self._registered_at.peek(identity) or [] if now - at < _CONTESTED_WINDOW_S]
        times.append(now)
        self._registered_at.put(identity, times[-_CONTESTED_REGISTRATIONS - 1 :])
        return len(times) > _CONTESTED_REGISTRATIONS

    def changed(self) -> None:
        """Something that decides who gets requests has changed."""
        self.version += 1
        self._eligible = None
