"""Everything one attempt takes from an endpoint and its pool, given back exactly once, whoever drives it.

The live gateway and the replay call the same methods: construction as the attempt opens, `first_byte`, `progress` for
emitted tokens, `ended`. Late and repeated calls change nothing.
"""

from __future__ import annotations

from typing import Final

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.precision import Mode
from turnout.core.fleet.prefill import settle
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.prefix.index import Placement
from turnout.core.prefix.residency import Residency

_SHORT_QUEUE: Final = 0.25  # a first byte measures the prefill when the queue was at most this share of the own work
_SHORT_QUEUE_S: Final = 0.02
_TTFT_WEIGHT: Final = 0.1
_SETTLE_EVERY: Final = 8


class Seat:
    """One open attempt. `tokens` is its estimate T, `uncached` what the engine has to prefill of it.

    `depth` blocks of `keys` are believed to be there, `predicted` tokens of them; `keys` must not change later.
    """

    __slots__ = (
        "_active_blocks",
        "_block_tokens",
        "_emitted",
        "_fleet",
        "_measured_s",
        "_mode",
        "_placement",
        "_pool",
        "_queue_s",
        "_streams",
        "_work_s",
        "dp_rank",
        "endpoint",
        "first_byte_s",
        "is_open",
        "keys",
        "opened_s",
        "predicted",
        "tokens",
        "uncached",
    )

    def __init__(
        self,
        fleet: Fleet,
        pool: Pool,
        endpoint: EndpointState,
        *,
        keys: list[int],
        depth: int,
        tokens: int,
        uncached: int,
        predicted: int,
        block_tokens: float,
        now: float,
        streams: bool = True,
        chain: list[int] | None = None,
        mode: Mode = Mode.APPROXIMATE,
        dp_rank: int = -1,
        affinity: int = 0,
    ) -> None:
        self._fleet = fleet
        self._pool = pool
        self.endpoint = endpoint
        self.keys = keys
        self.tokens = tokens
        self.uncached = uncached
        self.predicted = predicted
        self.opened_s = now
        self.first_byte_s: float | None = None
        self.is_open = True
        self._emitted = 0
        self._measured_s = 0.0
        self._mode = mode
        self._block_tokens = block_tokens
        prefill = endpoint.prefill
        self._queue_s = prefill.queue_s(now) if prefill.work_s else 0.0
        self._work_s = work_s = prefill.work_of(tokens, uncached)
        self._streams = streams
        if streams:
            prefill.opened(work_s, now)
        else:
            prefill.opened_blind(work_s, now)
        endpoint.opened(tokens, uncached)
        self.dp_rank = dp_rank
        if dp_rank >= 0 and endpoint.ranks is not None:
            endpoint.ranks.opened(dp_rank, affinity)
        pool.scheduled(tokens, uncached)
        endpoint.tokens_total += tokens
        endpoint.tokens_cached_total += tokens - uncached
        self._placement: Placement | None = None
        self._active_blocks = endpoint.active_blocks
        if self._active_blocks is not None:
            self._active_blocks.add(keys, self._private)
        if keys:
            self._hold_blocks(depth, now)
        if chain:
            fleet.predicted.record(chain, endpoint.bit, now)

    def first_byte(self, now: float) -> None:
        """The engine is through with the prompt."""
        if self.first_byte_s is not None or not self.is_open:
            return
        self.first_byte_s = now
        endpoint, uncached = self.endpoint, self.uncached
        waited = now - self.opened_s
        before = endpoint.ttft_s
        endpoint.ttft_s = waited if before is None else before + _TTFT_WEIGHT * (waited - before)
        endpoint.first_byte(uncached)
        prefill = endpoint.prefill
        if not self._streams:
            return
        prefill.closed(self._work_s, now)
        if self._queue_s > _SHORT_QUEUE * self._work_s + _SHORT_QUEUE_S:
            return
        self._measured_s = now - self.opened_s - self._queue_s
        if not endpoint.precisions[self._mode].known or prefill.samples < _SETTLE_EVERY:
            # What was cached will not be told, or too little is known to wait for it: the prediction has to do.
            self._learn(self.tokens, uncached)

    def progress(self, tokens: int) -> None:
        """The engine emitted so many more tokens."""
        if self.is_open:
            self._emitted += tokens
            self.endpoint.active_tokens += tokens
            if self._active_blocks is not None:
                self._active_blocks.grow(tokens / self._block_tokens)

    def ended(
        self,
        now: float,
        *,
        failed: bool,
        tokens_out: int | None = None,
        cached: int | None = None,
        reports: bool = True,
        prompt: int | None = None,
    ) -> None:
        """The attempt ended in any way. `tokens_out`, `cached`, `prompt`: what its usage said, None for nothing.

        `reports` is False when there was no usage at all, which says nothing about cached tokens either.
        An attempt that failed before its first byte put nothing into the engine's cache: its record is rolled back.
        """
        if not self.is_open:
            return
        self.is_open = False
        endpoint = self.endpoint
        first = self.first_byte_s
        if first is None:
            endpoint.first_byte(self.uncached)
            if self._streams:
                endpoint.prefill.closed(self._work_s, now)
            if failed and self._placement is not None:
                self._fleet.index.rollback(self._placement)
        elif self._streams and tokens_out is not None and tokens_out > 1:
            endpoint.prefill.stepped((now - first) / (tokens_out - 1))
        self._placement = None
        if self._fleet.index.refcounted and self.keys and endpoint.bit:
            self._fleet.index.release(self.keys, endpoint.bit)
        endpoint.ended(self.tokens + self._emitted)
        if self.dp_rank >= 0 and endpoint.ranks is not None:
            endpoint.ranks.ended(self.dp_rank)
        if self._active_blocks is not None:
            self._active_blocks.remove(self.keys, self._private + self._emitted / self._block_tokens)
        if not failed and reports:
            if prompt and cached:
                # In tokens as they were estimated, like the prediction it is compared with.
                endpoint.cached_reported(int(cached * self.tokens / prompt), self.predicted, self._mode)
            else:
                endpoint.cached_reported(cached, self.predicted, self._mode)
            if self._measured_s > 0.0:
                asked = prompt or self.tokens
                self._learn(asked, max(1, asked - (cached or 0)))

    def _learn(self, tokens: int, uncached: int) -> None:
        """Teach the endpoint's prefill model what this prompt took, once."""
        seconds, self._measured_s = self._measured_s, 0.0
        prefill = self.endpoint.prefill
        learnt = prefill.learn(tokens, uncached, seconds)
        if learnt and (prefill.samples < _SETTLE_EVERY or prefill.samples % _SETTLE_EVERY == 0):
            settle([member.prefill for member in self._pool.members])

    @property
    def predicted_s(self) -> float:
        """Time to the first byte as it looked when the attempt was opened: the queue before it and its own prompt."""
        return self._queue_s + self._work_s

    @property
    def _private(self) -> float:
        """Blocks of the prompt that have no key: nobody can share them."""
        return max(0.0, self.tokens / self._block_tokens - len(self.keys))

    def _hold_blocks(self, depth: int, now: float) -> None:
        fleet, endpoint, keys = self._fleet, self.endpoint, self.keys
        if endpoint.bit:
            self._placement = fleet.index.record(keys, endpoint.bit, now)
            owners = self._pool.last_owners
            if owners is not None:
                for key in keys:
                    owners.put(key, endpoint.bit)
        cache = endpoint.cache
        if cache is None:
            capacity = endpoint.cache_capacity_tokens
            if capacity is None:
                return
            cache = endpoint.cache = Residency(max(1, int(capacity / self._block_tokens)), fleet.ghosts)
            cache.told = endpoint.mode == Mode.EXACT
        if depth < len(keys):
            fleet.ghosts.scheduled(keys[depth:], now)
        pushed_out = cache.touch(keys, depth, now)
        if pushed_out:
            fleet.index.forget(pushed_out, endpoint.bit)
