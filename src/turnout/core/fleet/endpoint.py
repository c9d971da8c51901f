"""One endpoint incarnation as scheduling sees it: what it can serve, how loaded it is, and what speaks against it.

Attempts hold the incarnation they were opened on, so a late result of a removed one touches nothing new (I1).
"""

from __future__ import annotations

import math
from typing import Final

from turnout.core import options
from turnout.core.fleet.active_blocks import ActiveBlocks
from turnout.core.fleet.breaker import Breaker
from turnout.core.fleet.marks import Marks
from turnout.core.fleet.precision import Mode, Precision
from turnout.core.fleet.prefill import Prefill, Sent
from turnout.core.fleet.ranks import Ranks
from turnout.core.fleet.report import Report
from turnout.core.prefix.exact import ExactStream
from turnout.core.prefix.residency import Residency

_PREFILL_TOKENS_PER_S: Final = 8000.0
_REPORT_MAX_AGE_S: Final = 5.0  # the default of load.max_age_s
# What an endpoint holds at once when neither configuration nor engine says so: vLLM reports no maximum.
_IN_FLIGHT_MAX: Final = 256
_BY_ROLE: Final = {"prefill": 16}
# Engines that serve /v1/messages themselves; an unknown one is asked, and its own 404 is honest.
_SPOKEN: Final[dict[str, tuple[str, ...]]] = dict.fromkeys(("auto", "vllm", "sglang"), ("openai", "anthropic"))


class EndpointState(Marks):
    """Mutable; one per endpoint incarnation. Unknown signals are None, never zero."""

    __slots__ = (
        "_cooldown_until",
        "active_blocks",
        "active_tokens",
        "attempts_total",
        "bit",
        "block_tokens",
        "breaker",
        "cache",
        "cache_tokens",
        "context_max",
        "counted_at",
        "dialects",
        "durable_cooldown",
        "family",
        "flat_rate",
        "high_places",
        "in_flight",
        "in_flight_at_report",
        "incarnation",
        "kv_capacity_tokens",
        "kv_usage_ratio",
        "last_byte_at",
        "limit",
        "lost_at",
        "lost_models",
        "max_in_flight",
        "max_running",
        "mode",
        "models",
        "name",
        "observed_at",
        "own_at_report",
        "pending_prefill_tokens",
        "places",
        "precision",
        "precisions",
        "prefill",
        "probe_failures",
        "provider",
        "ranks",
        "role",
        "running",
        "served_as",
        "streams",
        "tokens_cached_total",
        "tokens_total",
        "ttft_s",
        "url",
        "uuid_ids",
        "waiting",
        "waiting_uncached_tokens",
    )

    def __init__(  # noqa: PLR0915 - one statement per signal
        self,
        endpoint: options.Endpoint,
        breaker: options.Breaker,
        bit: int,
        incarnation: int,
        prefill_tokens_per_s: float = _PREFILL_TOKENS_PER_S,
    ) -> None:
        super().__init__()
        self.name, self.url = endpoint.name, endpoint.url
        self.provider = endpoint.provider
        self.role = endpoint.role
        self.models = frozenset(endpoint.models)
        self.served_as = dict(endpoint.served_as)
        self.context_max = endpoint.context_max
        self.limit = endpoint.max_in_flight
        """As configured; None leaves it to the engine."""
        self.max_in_flight = self.limit or _BY_ROLE.get(endpoint.role, _IN_FLIGHT_MAX)
        self.places = self.max_in_flight
        """Our own attempts that it takes now: less when it reports fewer, others' requests or full memory."""
        self.high_places = (self.places + 1) // 2
        """From so many on nothing is asked of it twice."""
        self.family: str = endpoint.family
        self.uuid_ids = endpoint.family == "llamacpp"  # it refuses any other `x-request-id` (engines/llamacpp.py)
        self.dialects = frozenset(endpoint.dialects or _SPOKEN.get(endpoint.family, ("openai",)))
        self.durable_cooldown, self.flat_rate = endpoint.durable_cooldown, endpoint.flat_rate
        self.bit, self.incarnation = bit, incarnation
        if endpoint.standby:
            self.standby = True
        if endpoint.role != "both":
            self.split = True
        self.breaker = Breaker(breaker)
        self.in_flight = self.pending_prefill_tokens = self.active_tokens = self.attempts_total = 0
        self.running: int | None = None
        self.waiting: int | None = None
        self.kv_usage_ratio: float | None = None
        self.observed_at: float | None = None
        self.counted_at: float | None = None  # when the last whole report was asked for; parts of one build on it
        self.in_flight_at_report = self.own_at_report = 0
        """As many of our own as the scrape was sent; as many of the reported requests may be ours."""
        self.last_byte_at: float | None = None
        self.lost_at = -math.inf
        """When it could no longer be reached, the last time that this happened."""
        self.probe_failures = 0
        self.lost_models: set[str] = set()
        self.mode = Mode.APPROXIMATE
        self.precisions = (Precision(Mode.APPROXIMATE), Precision(Mode.DEGRADED), Precision(Mode.EXACT))
        self.precision = self.precisions[Mode.APPROXIMATE].value
        """That of our own history, 0 while it is not trusted: what scheduling multiplies such a match with."""
        self.ttft_s: float | None = None
        """Time to the first byte, recent ones more; None before the first."""
        self.tokens_total = self.tokens_cached_total = 0
        """Prompt tokens sent here, and those of them that were believed to be cached."""
        self.streams: list[ExactStream] = []
        """What its ranks say of their caches, by rank; empty without KV events."""
        self.ranks: Ranks | None = None
        """Set where it has several and takes requests for one of them."""
        self.block_tokens = 0
        """Size of its KV blocks as its events have it."""
        self.prefill = Prefill(prefill_tokens_per_s)
        self.waiting_uncached_tokens: int | None = None
        self.kv_capacity_tokens: int | None = None
        self.cache_tokens: int | None = endpoint.cache_tokens
        self.max_running: int | None = None
        self.cache: Residency | None = None
        self.active_blocks: ActiveBlocks | None = None
        self._cooldown_until = 0.0

    def __repr__(self) -> str:
        return f"EndpointState({self.name!r}, incarnation={self.incarnation}, in_flight={self.in_flight})"

    def opened(self, tokens: int, uncached: int) -> None:
        """An attempt opens: `tokens` is its estimate T, `uncached` what the engine has to prefill of it."""
        self.in_flight += 1
        self.attempts_total += 1
        self.active_tokens += tokens
        self.pending_prefill_tokens += uncached

    def first_byte(self, uncached: int) -> None:
        """Its prefill is over: give `uncached` back. Once per attempt, here or in `ended`."""
        self.pending_prefill_tokens = max(0, self.pending_prefill_tokens - uncached)

    def ended(self, tokens: int, uncached: int = 0) -> None:
        """An attempt ends in any way, exactly once; `uncached` as at open when no first byte had come, else 0."""
        if self.in_flight > 0:
            self.in_flight -= 1
        self.active_tokens = max(0, self.active_tokens - tokens)
        if uncached:
            self.first_byte(uncached)

    def reported(
        self,
        observed_at: float,
        in_flight_then: int,
        running: int | None,
        waiting: int | None,
        kv_usage_ratio: float | None = None,
        max_age_s: float = _REPORT_MAX_AGE_S,
    ) -> None:
        """The counts of an engine report; `observed_at` and `in_flight_then` are of the moment the scrape was *sent*.

        What was opened less what ended since then is the change of `in_flight`, so no history is kept (scheduling §4).
        `max_age_s` later it is a report no more.
        """
        self.observed_at = observed_at
        self.prefill.heard_until = observed_at + max_age_s
        self.in_flight_at_report = self.own_at_report = in_flight_then
        self.running = running
        self.waiting = waiting
        self.kv_usage_ratio = kv_usage_ratio

    def sent(self, now: float) -> Sent:
        """Return our own counts as a scrape is sent; `observed` wants them back with the answer."""
        prefill = self.prefill
        return Sent(now, self.in_flight, prefill.prefilling, prefill.opened_s, self.attempts_total)

    def observed(self, sent: Sent, report: Report, max_age_s: float, mean_uncached: float) -> None:
        """An engine report arrives; `sent` was read as its scrape was sent. Unknown signals stay None."""
        if report.kv_capacity_tokens is not None:
            self.kv_capacity_tokens = report.kv_capacity_tokens
        if report.max_running is not None:
            self.max_running = report.max_running
        if self.counted_at is not None and sent.at < self.counted_at:
            return  # the answer to a scrape that a pushed report has overtaken
        self.counted_at = sent.at
        self.reported(sent.at, sent.in_flight, report.running, report.waiting, report.kv_usage_ratio, max_age_s)
        self.own_at_report = sent.in_flight + self.attempts_total - sent.attempts
        self.waiting_uncached_tokens = report.waiting_uncached_tokens
        self.prefill.reported(sent, report.waiting, report.waiting_uncached_tokens, mean_uncached)

    def told(self, sent: Sent, part: Report, max_age_s: float, mean_uncached: float) -> None:
        """Take in what an answer told beside itself: how many wait, how full the memory is, hardly ever how many run.

        While a whole report is fresh, whatever is left out stays as it was there. Requests beside our own are believed
        to be as many as then, so that such a part moves them between running and waiting only.
        """
        running, waiting, usage = part.running, part.waiting, part.kv_usage_ratio
        if self.counted_at is not None and sent.at - self.counted_at <= max_age_s:
            waiting = self.waiting if waiting is None else waiting
            usage = self.kv_usage_ratio if usage is None else usage
            if running is None and self.running is not None and self.waiting is not None and waiting is not None:
                foreign = max(0, self.running + self.waiting - self.in_flight_at_report)
                running = max(0, foreign + sent.in_flight - waiting)
        self.reported(sent.at, sent.in_flight, running, waiting, usage, max_age_s)
        self.prefill.reported(sent, waiting, None, mean_uncached)
        self.waiting_uncached_tokens = None

    @property
    def cache_capacity_tokens(self) -> int | None:
        """Tokens its prefix cache holds: as configured, else what the engine reports."""
        return self.cache_tokens if self.cache_tokens is not None else self.kv_capacity_tokens

    def cached_reported(self, real: int | None, predicted: int, mode: Mode = Mode.APPROXIMATE) -> None:
        """Compare cached tokens a response reported with those predicted for it; None is what engines write for 0."""
        self.precisions[mode].reported(real, predicted)
        if mode == Mode.APPROXIMATE:
            self.precision = self.precisions[mode].value

    @property
    def cooldown_until(self) -> float:
        """Instant until which the endpoint asked to be left alone."""
        return self._cooldown_until

    @cooldown_until.setter
    def cooldown_until(self, instant: float) -> None:
        self._cooldown_until = instant
        self.cooling = instant > 0

    def lose(self, model: str) -> None:
        """The endpoint said that it does not serve this model: not asked again until its next model list."""
        self.lost_models.add(model)
        self.losing = True

    def listed(self) -> None:
        """A fresh model list came: what was lost is served again, or is no longer in the list's pool."""
        self.lost_models.clear()
        self.losing = False
