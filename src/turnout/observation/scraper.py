"""Scrapes the engines' load reports: often where our requests are, seldom elsewhere, never two at once per endpoint.

The pause adapts to what a scrape costs: all scrapes together take at most a few percent of this process, however long
the pages and however many the endpoints. An engine that has no report is asked again once in a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from turnout.core import options
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.prefill import Sent
from turnout.core.fleet.registry import Fleet
from turnout.core.fleet.report import Report
from turnout.engines.load_reports import read_loads, read_metrics
from turnout.observation.fetch import Fetcher

_OK, _NOT_FOUND = 200, 404
_SHARE_MAX = 0.03  # of one core, for all scrapes together
_COST_WEIGHT = 0.1
_ALONE_MS, _BESIDE_PEERS_MS = 200, 50
_ERROR_WEIGHT = 0.1
_ABSENT_AFTER = 3
_ABSENT_S = 30.0
_LOADS = "/v1/loads"
_METRICS = "/metrics"
_SIGNALS = ("running", "waiting", "kv_usage_ratio", "waiting_uncached_tokens", "kv_capacity_tokens")


class Scrapes(msgspec.Struct):
    """What became of the scrapes of one endpoint; `lost` counts signals that were known and then missing.

    `errors` has, per signal, how far the estimate is from what the next report says, on average.
    """

    done: int = 0
    failed: int = 0
    absent_in_row: int = 0
    lost: dict[str, int] = {}
    known: frozenset[str] = frozenset()
    errors: dict[str, float] = {}
    last: Report | None = None
    reads_loads: bool = False


class Scraper:
    """One task per endpoint; `on_report` hears of what may free a held request, `on_restart` of a new engine life."""

    def __init__(
        self,
        fleet: Fleet,
        endpoints: list[options.Endpoint],
        load: options.Load,
        *,
        clock: Callable[[], float],
        on_report: Callable[[EndpointState], None] = lambda _: None,
        on_restart: Callable[[EndpointState], None] = lambda _: None,
    ) -> None:
        self.scrapes = {endpoint.name: Scrapes() for endpoint in endpoints if not endpoint.provider}
        self._fleet, self._load, self._clock = fleet, load, clock
        self._interval_ms = interval_ms(load)
        self._endpoints = [endpoint for endpoint in endpoints if not endpoint.provider]
        self._on_report, self._on_restart = on_report, on_restart
        self._watches: dict[str, tuple[asyncio.Task[None], Fetcher]] = {}
        self._cost_s = 0.0

    def start(self) -> None:
        """Begin to scrape, unless the interval is 0."""
        if not self._interval_ms:
            return
        for number, endpoint in enumerate(self._endpoints):
            # Spread over the first interval, so that scrapes never come in one burst.
            self._begin(endpoint, self._interval_ms / 1000.0 * number / len(self._endpoints))

    def follow(self, endpoint: options.Endpoint) -> None:
        """Scrape an endpoint that has joined, or that has come back as something else."""
        known = self._watches.pop(endpoint.name, None)
        if known is not None:
            known[0].cancel()
            known[1].close()
        self._endpoints = [one for one in self._endpoints if one.name != endpoint.name]
        if endpoint.provider or not self._interval_ms:
            return
        self._endpoints.append(endpoint)
        self.scrapes[endpoint.name] = Scrapes()
        self._begin(endpoint, 0.0)

    async def stop(self) -> None:
        """End all tasks and wait until they have."""
        watches = list(self._watches.values())
        for task, _ in watches:
            task.cancel()
        await asyncio.gather(*(task for task, _ in watches), return_exceptions=True)
        for _, fetcher in watches:
            fetcher.close()

    def _begin(self, endpoint: options.Endpoint, offset_s: float) -> None:
        fetcher = Fetcher(endpoint, self._load.timeout_s)
        task = asyncio.get_running_loop().create_task(self._watch(endpoint, fetcher, offset_s))
        self._watches[endpoint.name] = (task, fetcher)

    def interval_s(self, endpoint: EndpointState, scrapes: Scrapes) -> float:
        """Return the pause before the next scrape."""
        if scrapes.absent_in_row >= _ABSENT_AFTER:
            return _ABSENT_S
        ms = self._interval_ms if endpoint.in_flight else self._load.idle_interval_ms
        return max(ms / 1000.0, self._cost_s * len(self._endpoints) / _SHARE_MAX)

    async def _watch(self, endpoint: options.Endpoint, fetcher: Fetcher, offset_s: float) -> None:
        await asyncio.sleep(offset_s)
        scrapes = self.scrapes[endpoint.name]
        loop = asyncio.get_running_loop()
        while True:
            state = self._fleet.endpoints.get(endpoint.name)
            if state is None:
                await asyncio.sleep(self._load.idle_interval_ms / 1000.0)
                continue
            try:
                await self._once(endpoint, state, fetcher, scrapes)
            except Exception as error:  # noqa: BLE001 - a bug in reading one page must not end the watch
                loop.call_exception_handler({"message": "a load report met a bug", "exception": error})
            await asyncio.sleep(self.interval_s(state, scrapes))

    async def _once(self, endpoint: options.Endpoint, state: EndpointState, fetcher: Fetcher, scrapes: Scrapes) -> None:
        sent = state.sent(self._clock())
        loads_first = endpoint.family == "sglang" and not scrapes.absent_in_row
        answer = await fetcher.get(_LOADS if loads_first else _METRICS)
        if loads_first and answer is not None and answer[0] == _NOT_FOUND:
            loads_first = False
            answer = await fetcher.get(_METRICS)
        if answer is None or answer[0] != _OK:
            scrapes.failed += 1
            scrapes.absent_in_row += answer is not None
            self._signals(scrapes, None)
            return
        scrapes.absent_in_row = 0
        started = time.thread_time()
        served = frozenset(endpoint.served_as.get(model, model) for model in endpoint.models)
        report = read_loads(answer[1]) if loads_first else read_metrics(answer[1], served)
        self._cost_s += _COST_WEIGHT * (time.thread_time() - started - self._cost_s)
        self._signals(scrapes, report)
        if report is None:
            scrapes.failed += 1
            return
        scrapes.done += 1
        before, scrapes.last = scrapes.last, report
        if state.gone:
            return
        if before is not None and restarted(before, report):
            self._on_restart(state)
            return
        if before is not None and generated(before, report):
            state.last_byte_at = sent.at  # it works, although whole answers show no byte before their end (D3, O5)
        error = estimate_error(state, sent, report)
        if error is not None:
            errors = scrapes.errors
            errors["busy"] = errors.get("busy", error) + _ERROR_WEIGHT * (error - errors.get("busy", error))
        self._fleet.observed(state, sent, report)
        self._on_report(state)

    def _signals(self, scrapes: Scrapes, report: Report | None) -> None:
        known = frozenset(name for name in _SIGNALS if report is not None and getattr(report, name) is not None)
        for name in scrapes.known - known:
            scrapes.lost[name] = scrapes.lost.get(name, 0) + 1
        scrapes.known = known


def interval_ms(load: options.Load) -> int:
    """Return the pause between scrapes of an endpoint that has our traffic."""
    if load.scrape_interval_ms is not None:
        return load.scrape_interval_ms
    # What other routers dispatch is known from reports alone: load older than 100 ms hurts them all.
    return _BESIDE_PEERS_MS if load.peers else _ALONE_MS


def estimate_error(state: EndpointState, sent: Sent, report: Report) -> float | None:
    """Return by how many requests the load reckoned from the last report was wrong as this scrape was sent."""
    if None in (state.running, state.waiting, report.running, report.waiting):
        return None
    before, after = (state.running or 0) + (state.waiting or 0), (report.running or 0) + (report.waiting or 0)
    reckoned = max(sent.in_flight, before + sent.in_flight - state.in_flight_at_report)
    return float(abs(reckoned - after))


def generated(before: Report, after: Report) -> bool:
    """Tell whether the engine wrote tokens between two reports."""
    one, two = before.generated_tokens, after.generated_tokens
    return one is not None and two is not None and two > one


def restarted(before: Report, after: Report) -> bool:
    """Tell whether the engine began a new life between two reports, or dropped what it had: counters never go back."""
    if before.started_at is not None and after.started_at is not None and before.started_at != after.started_at:
        return True
    for one, two in ((before.generated_tokens, after.generated_tokens), (before.prompt_tokens, after.prompt_tokens)):
        if one is not None and two is not None and two < one:
            return True
    return False
