"""The figures of one door under the keys that the metrics catalogue reads; taken at scrape time, from any thread."""

from __future__ import annotations

from typing import Any

from turnout.coordinator.control import State
from turnout.coordinator.door import Door


def stats(door: Door) -> dict[str, Any]:
    """Return counters, gauges and histograms."""
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
