"""Joins KV events to the fleet: one informant per rank of each endpoint that publishes, while the endpoint lives.

Load reports that engines push come over the same thread; the reports of all ranks together are a report like a scrape.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from turnout.core import options
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.informant import Informant
from turnout.core.fleet.precision import Mode
from turnout.core.fleet.ranks import Ranks
from turnout.core.fleet.registry import Fleet
from turnout.core.prefix.keys import root_key
from turnout.engines.kv_events import of_rank
from turnout.engines.sglang import LOAD_TOPIC, kv_source
from turnout.observation.fetch import Fetcher
from turnout.observation.kv_listener import Heard, KvListener, Source
from turnout.observation.load_pushes import LoadPushes

_TICK_S = 1.0
_DISCOVER_S = 2.0
_DISCOVER_TRIES = 3
_OK, _SERVER_ERROR = 200, 500
_SLICE_S = 0.004  # applying events gives way to requests after this long


class KvEvents:
    """Runs on the event loop. `on_change` is called when what was learnt may free a held request."""

    def __init__(
        self,
        fleet: Fleet,
        endpoints: list[options.Endpoint],
        events: options.KvEvents,
        *,
        clock: Callable[[], float],
        weight_version: Callable[[str], str] = lambda _: "",
        on_change: Callable[[EndpointState], None] = lambda _: None,
    ) -> None:
        self.informants: dict[tuple[str, int], Informant] = {}
        self._fleet, self._events, self._clock = fleet, events, clock
        self._endpoints = {e.name: e for e in endpoints if e.kv_events or e.load_events}
        self._loads: dict[str, LoadPushes] = {}
        self._undiscovered = [endpoint for endpoint in endpoints if endpoint.kv_discover and not endpoint.kv_events]
        self._tasks: list[asyncio.Task[None]] = []
        self._weight_version = weight_version
        self._on_change = on_change
        self._listener: KvListener | None = None
        self._queue: deque[Heard] = deque()
        self._ended: dict[str, dict[str, int]] = {}
        self._changes: dict[tuple[Mode, Mode, str], int] = {}
        self._draining = False
        self._ticker: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Subscribe to every endpoint that publishes; without one there is no thread."""
        if not self._endpoints and not self._undiscovered:
            return
        self._listener = KvListener(
            self._heard, queue_max=self._events.queue_max, replay_timeout_s=self._events.replay_timeout_s
        )
        self._listener.start()
        self._look()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._discover(endpoint)) for endpoint in self._undiscovered]

    def counts(self) -> dict[str | tuple[str, ...], dict[str, int]]:
        """Return events per endpoint by type or fault, over its ranks and incarnations."""
        total: dict[str | tuple[str, ...], dict[str, int]] = {name: dict(kept) for name, kept in self._ended.items()}
        for (name, _), informant in self.informants.items():
            _add(total.setdefault(name, {}), informant.counts)
        return total

    def mode_changes(self) -> dict[tuple[Mode, Mode, str], int]:
        """Return how often the knowledge of a rank changed, by (from, to, reason)."""
        for informant in self.informants.values():
            self._note_changes(informant)
        return dict(self._changes)

    def stop(self) -> None:
        """Unsubscribe."""
        for task in self._tasks:
            task.cancel()
        if self._ticker is not None:
            self._ticker.cancel()
        if self._listener is not None:
            self._listener.stop()

    async def _discover(self, endpoint: options.Endpoint) -> None:
        """Ask an SGLang engine where it publishes: three tries; it has no events when it refuses the question."""
        fetcher = Fetcher(endpoint, _DISCOVER_S)
        try:
            for _ in range(_DISCOVER_TRIES):
                answer = await fetcher.get("/server_info")
                if answer is None or answer[0] >= _SERVER_ERROR:
                    await asyncio.sleep(_DISCOVER_S)
                    continue
                source = kv_source(answer[1], urlsplit(endpoint.url).hostname or "") if answer[0] == _OK else None
                if source is not None:
                    self._endpoints[endpoint.name] = msgspec.structs.replace(
                        endpoint,
                        kv_events=source.endpoint,
                        kv_topic=source.topic,
                        kv_ranks=source.ranks,
                        load_events=endpoint.load_events or source.load,
                    )
                return
        finally:
            fetcher.close()

    def _look(self) -> None:
        """Follow the fleet: a new incarnation is heard anew; and let informants look at the clock."""
        self._ticker = asyncio.get_running_loop().call_later(_TICK_S, self._look)
        now = self._clock()
        for name, endpoint in self._endpoints.items():
            state = self._fleet.endpoints.get(name)
            if endpoint.load_events and state is not None and name not in self._loads:
                self._hear_loads(endpoint)
            if not endpoint.kv_events:
                continue
            for rank in range(endpoint.kv_ranks):
                key = (name, rank)
                informant = self.informants.get(key)
                if informant is not None and informant.endpoint is not state:
                    del self.informants[key]
                    self._note_changes(informant)
                    _add(self._ended.setdefault(name, {}), informant.counts)
                    self._listener.remove(key)  # type: ignore[union-attr]  # runs only while there is one
                    informant = None
                if informant is None and state is not None:
                    self._subscribe(key, endpoint, state)
        for informant in self.informants.values():
            informant.tick(now)

    def _hear_loads(self, endpoint: options.Endpoint) -> None:
        self._loads[endpoint.name] = LoadPushes(endpoint.kv_ranks)
        for rank in range(endpoint.kv_ranks):
            at = of_rank(endpoint.load_events, rank)
            self._listener.add(Source(_load_key(endpoint.name, rank), at, topic=LOAD_TOPIC, load=True))  # type: ignore[union-attr]  # as above

    def _note_changes(self, informant: Informant) -> None:
        while informant.transitions:
            change = informant.transitions.popleft()
            self._changes[change] = self._changes.get(change, 0) + 1

    def _subscribe(self, key: tuple[str, int], endpoint: options.Endpoint, state: EndpointState) -> None:
        model = min(endpoint.models)
        version = self._weight_version(model)

        def root(lora: str, salt: str, block: int) -> int:
            # An adapter that is a model of its own here has that model's keys.
            own = next((name for name in endpoint.models if lora and endpoint.served_as.get(name, name) == lora), "")
            return root_key(
                own or model,
                space="tok",
                block=block,
                weight_version=version,
                lora="" if own else lora,
                cache_salt=salt,
            )

        rank = key[1]
        if endpoint.kv_route_ranks and endpoint.kv_ranks > 1 and endpoint.role == "both" and state.ranks is None:
            state.ranks = Ranks(endpoint.kv_ranks)
        self.informants[key] = Informant(
            self._fleet,
            state,
            rank,
            root,
            held_max=self._events.queue_max,
            silence_s=self._fleet.prefix.event_silence_s,
        )
        source = Source(
            key,
            of_rank(endpoint.kv_events, rank),
            of_rank(endpoint.kv_replay, rank),
            endpoint.kv_topic,
            endpoint.kv_bind,
        )
        self._listener.add(source)  # type: ignore[union-attr]  # runs only while there is one

    def _heard(self, lot: list[Heard]) -> None:
        self._queue.extend(lot)
        if not self._draining:
            self._drain()

    def _drain(self) -> None:
        """Apply what was heard, a slice of time at once."""
        now = self._clock()
        touched: set[EndpointState] = set()
        pushed: set[str] = set()
        while self._queue:
            heard = self._queue.popleft()
            if heard.load is not None:
                self._loads[heard.key[0]].heard(heard.key, heard.load, now)
                pushed.add(heard.key[0])
                continue
            informant = self.informants.get(heard.key)
            if informant is None:
                continue
            touched.add(informant.endpoint)
            self._apply(heard, informant, now)
            if self._queue and self._clock() - now > _SLICE_S:
                break
        self._draining = bool(self._queue)
        if self._draining:
            asyncio.get_running_loop().call_soon(self._drain)
        for name in pushed:
            state, report = self._fleet.endpoints.get(name), self._loads[name].report(now, self._fleet.load_max_age_s)
            if state is not None and report is not None:
                self._fleet.observed(state, state.sent(now), report)
                touched.add(state)
        for endpoint in sorted(touched, key=lambda state: state.name):
            self._on_change(endpoint)

    def _apply(self, heard: Heard, informant: Informant, now: float) -> None:
        if heard.lost:
            informant.disconnected(now)
            return
        if heard.replay is not None:
            start = informant.replayed(heard.replay, now)
        else:
            start = informant.received(heard.seq, heard.digest, heard.batch, now)
        if start is not None:
            self._listener.replay(heard.key, start)  # type: ignore[union-attr]  # it delivered what was heard


def _add(total: dict[str, int], counts: dict[str, int]) -> None:
    for what, number in counts.items():
        total[what] = total.get(what, 0) + number


def _load_key(name: str, rank: int) -> tuple[str, int]:
    """Name the source of a rank's load beside that of its events."""
    return (name, -1 - rank)
