"""What others may read of one door: figures under the keys of the metrics catalogue, its state, and its schedule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from turnout.coordinator.control import State
from turnout.coordinator.door import Door
from turnout.coordinator.listener import CoordinatorListener, schedule_of
from turnout.coordinator.peers import Engine, shown


class View:
    """What the admin listener shows of one door; both are asked for on the loop."""

    def __init__(self, listener: CoordinatorListener) -> None:
        self._listener = listener

    def overview(self) -> dict[str, Any]:
        """The door as it stands: address, state, engines, and how much is open."""
        door, now = self._listener.door, self._listener.clock()
        return {
            "address": self._listener.address,
            "ready": door.ready,
            "state": door.roster.state.value,
            "policy": door.chooser.policy,
            "clients": len(door.clients.known),
            "open_requests": len(door.requests.open),
            "pending": len(door.requests.pending),
            "engines": [_shown(engine, now) for _, engine in sorted(door.roster.live.items())],
            "lost": sorted(shown(identity) for identity in door.roster.lost),
        }

    def schedule(self, *, lines: bool) -> Iterator[bytes] | None:
        """The schedule so far, in parts; None when the door keeps none."""
        door = self._listener.door
        return schedule_of(door, lines=lines) if door.options.schedule_path else None


def _shown(engine: Engine, now: float) -> dict[str, Any]:
    return {
        "name": engine.name,
        "incarnation": engine.incarnation,
        "control": engine.control.value,
        "open": len(engine.open),
        "saturated": engine.saturated,
        "joined_s": round(now - engine.joined_at, 3),
        "silent_s": round(now - engine.heard_at, 3),
    }


def stats(door: Door) -> dict[str, Any]:
    """Return counters, gauges and histograms, at scrape time and from any thread."""
    tally, index = door.tally, door.chooser.index
    return {
        "messages": dict(tally.messages),
        "invalid": dict(tally.invalid),
        "internal_errors": dict(tally.internal_errors),
        "unknown_sender": tally.unknown_sender,
        "muted": tally.muted,
        "unreachable": dict(tally.unreachable),
        "active_engines": len(door.roster),
        "clients": len(door.clients.known),
        "open_requests": len(door.requests.open),
        "pending": len(door.requests.pending),
        "state": {state.value: int(state is door.roster.state) for state in State},
        "replies_dropped": dict(tally.dropped),
        "accepted": tally.accepted,
        "completed": tally.completed,
        "aborted": tally.aborted,
        "resent": tally.resent,
        "failed": dict(tally.failed),
        "exhausted": tally.exhausted,
        "registrations": dict(tally.registrations),
        "contested": tally.contested,
        "clients_refused": tally.clients_refused,
        "signals": dict(tally.signals),
        "lookups": dict(tally.lookups),
        "fallback": dict(tally.fallbacks),
        "predicted_tokens": tally.predicted_tokens,
        "realised_tokens": tally.realised_tokens,
        "detokenize_failures": tally.detokenize_failures,
        "hash_mismatches": tally.hash_mismatches,
        "index_entries": index.entries,
        "index_slots": index.slots,
        "index_evictions": dict(index.evicted),
        "index_purges": index.purges,
        "schedule": {(): tally.schedule_s},
        "message": {(kind,): histogram for kind, histogram in list(tally.message_s.items())},
    }
