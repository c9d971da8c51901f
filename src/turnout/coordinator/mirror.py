"""The engines of the door as endpoints of the fleet, so that HTTP requests are scheduled on them like on any other.

What native clients have open there is told to the fleet as an engine report: both kinds of load count in one number.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from typing import Any

from turnout.coordinator.listener import CoordinatorListener
from turnout.coordinator.peers import Engine
from turnout.coordinator.text import Receiver, TextEngines
from turnout.coordinator.tokenizers import Tokenizer
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet
from turnout.core.options import Endpoint

_PREFIX = "zmq."
_NAME_MAX = 64
_RETIRED_MAX = 256


class EngineSource:
    """Writes the answers of one engine."""

    def __init__(self, engines: TextEngines, engine: Engine) -> None:
        self._engines = engines
        self._engine = engine

    def begin(self, path: str, body: bytes, receiver: Receiver) -> int | None:
        """Start an answer; None when it has ended already."""
        return self._engines.begin(self._engine, path, body, receiver)

    def cancel(self, number: int) -> None:
        """Nobody waits any more."""
        self._engines.cancel(number)

    def pause(self, number: int) -> None:
        """The client reads slowly."""
        self._engines.pause(number)

    def resume(self, number: int) -> None:
        """It has caught up."""
        self._engines.resume(number)


class Mirror:
    """Keeps fleet and upstreams in step with the door. `make` builds the gateway's side of one engine."""

    def __init__(
        self,
        listener: CoordinatorListener,
        tokenizer: Tokenizer,
        fleet: Fleet,
        upstreams: MutableMapping[str, Any],
        make: Callable[[EngineSource], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._door = listener.door
        self._engines = TextEngines(listener, tokenizer, clock)
        self._fleet = fleet
        self._upstreams = upstreams
        self._make = make
        self._clock = clock
        self._shown: dict[Engine, EndpointState] = {}
        self._retired: OrderedDict[str, None] = OrderedDict()
        self._version = -1

    def sweep(self) -> None:
        """Bring the fleet up to date: who is there, and how loaded."""
        roster, now = self._door.roster, self._clock()
        if self._version != roster.version:
            self._version = roster.version
            live = set(roster.live.values())
            for engine in [engine for engine in self._shown if engine not in live]:
                self._leave(engine)
            for identity in sorted(roster.live):
                if roster.live[identity] not in self._shown:
                    self._join(roster.live[identity], now)
        eligible = set(roster.eligible)
        for engine, endpoint in self._shown.items():
            endpoint.draining = engine not in eligible
            endpoint.reported(now, endpoint.in_flight, len(engine.open), 0, max_age_s=self._fleet.load_max_age_s)

    def _join(self, engine: Engine, now: float) -> None:
        options = self._door.options
        name = (_PREFIX + engine.name)[:_NAME_MAX]
        if name in self._fleet.endpoints:
            # A configured endpoint of that name, or two identities alike in their first bytes: the first one stays.
            self._door.records.add("error", "coordinator_name_taken", now, endpoint=name)
            return
        self._upstreams[name] = self._make(EngineSource(self._engines, engine))
        self._retired.pop(name, None)
        endpoint = Endpoint(
            name=name,
            url="http://coordinator.invalid:1",
            models=[options.model],
            family="megatron",
            max_in_flight=options.max_requests,
        )
        self._shown[engine] = self._fleet.add(endpoint, now)

    def _leave(self, engine: Engine) -> None:
        """Out of scheduling; the way to cancel what is still open there stays for a while."""
        name = self._shown.pop(engine).name
        self._fleet.remove(name)
        self._retired[name] = None
        if len(self._retired) > _RETIRED_MAX:
            oldest, _ = self._retired.popitem(last=False)
            del self._upstreams[oldest]
