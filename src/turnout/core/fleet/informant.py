"""What one rank of one engine says of its KV cache, and how far that may be believed (scheduling §3.1, §3.2).

Engine hashes are never recomputed: a stored block's key is our own chain over its tokens, starting from its parent's
key. A block whose parent is unknown waits as an orphan and matches nothing. The mode follows from facts: complete since
the publisher's first batch, since a clear, or since a full turnover of the cache; anything missed makes it DEGRADED.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from xxhash import xxh3_64_intdigest

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.precision import Mode
from turnout.core.fleet.registry import Fleet
from turnout.core.prefix.keys import token_keys
from turnout.core.prefix.kv_events import Batch, Cleared, KvEvent, Removed, Stored
from turnout.core.prefix.sequence import Kind, Sequencer, Step

_ORPHANS_MAX = 100_000
_LOST_S = 60.0
_SILENT_ATTEMPTS = 10
_BAD_WINDOW, _BAD_SHARE = 1000, 0.01

Roots = Callable[[str, str, int], int]
"""(LoRA name, cache salt, block size) → key of the root."""


class Informant:
    """One (endpoint incarnation, rank). `received` and `replayed` take batches in and return where a replay must start.

    `transitions` has (from, to, reason) in order until the shell takes them; `counts` by event type or reason.
    """

    def __init__(
        self, fleet: Fleet, endpoint: EndpointState, rank: int, roots: Roots, *, held_max: int, silence_s: float
    ) -> None:
        self.endpoint = endpoint
        self.rank = rank
        self.mode = Mode.APPROXIMATE
        self.sequencer: Sequencer[Batch] = Sequencer(held_max)
        self.counts: dict[str, int] = {}
        self.transitions: deque[tuple[Mode, Mode, str]] = deque(maxlen=1000)
        self.stream = fleet.open_stream(endpoint, endpoint.block_tokens)
        self._fleet = fleet
        self._roots = roots
        self._silence_s = silence_s
        self._complete = False
        self._stored_since_gap = 0
        self._orphans: OrderedDict[int, list[Stored]] = OrderedDict()
        self._orphan_blocks = 0
        self._groups_left_out: set[int] = set()
        self._results: deque[bool] = deque(maxlen=_BAD_WINDOW)
        self._bad = 0
        self._heard_at: float | None = None
        self._attempts_at_word = 0
        self._lost_at: float | None = None

    def received(self, seq: int, digest: int, batch: Batch | None, now: float) -> int | None:
        """Take in one live message; None for a payload that does not decode. Returns where a replay must start."""
        self._heard_at = now
        self._lost_at = None
        self._attempts_at_word = self.endpoint.attempts_total
        if batch is None:
            self._result(good=False)
            self._count("bad_payload")  # its number counts as missing, which the next one shows
            self._believe("undecodable")
            return None
        start = self._follow(self.sequencer.received(seq, digest, batch), now)
        self._believe("heard")
        return start

    def replayed(self, batches: list[tuple[int, int, Batch]], now: float) -> int | None:
        """A replay ended, by itself or because it took too long."""
        self._count("replays")
        start = self._follow(self.sequencer.replayed(batches), now)
        self._believe("replayed")
        return start

    def disconnected(self, now: float) -> None:
        """The connection to the publisher broke; it counts as lost a minute later."""
        if self._lost_at is None:
            self._lost_at = now
        self.sequencer.lost()

    def tick(self, now: float) -> None:
        """Look at the clock: silence while attempts finish, and a stream that stays away."""
        if self._lost_at is not None and now - self._lost_at > _LOST_S:
            self._enter(Mode.APPROXIMATE, "lost")
        elif self._is_silent(now):
            self._enter_if_above(Mode.DEGRADED, "silence")

    def closed(self, reason: str) -> None:
        """Hear no more of this rank: dropped at the cap, or its endpoint is gone."""
        self._fleet.exact.close(self.stream, reason)
        self._enter(Mode.APPROXIMATE, reason)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _follow(self, steps: list[Step[Batch]], now: float) -> int | None:
        start = None
        for step in steps:
            if step.kind is Kind.APPLY and step.batch is not None:
                self._apply(step.batch, now)
            elif step.kind is Kind.WHOLE:
                self._complete = True
                self._believe("complete")
            elif step.kind is Kind.GAP:
                self._count("missing", step.number)
                self._gap("gap")
            elif step.kind is Kind.RESTART:
                self._drop("restart")
                self._complete = False
            else:
                start = step.number
        return start

    def _apply(self, batch: Batch, now: float) -> None:
        self._result(good=not batch.bad)
        for reason in batch.bad:
            self._count("bad_" + reason)
        if batch.skipped:
            self._count("skipped", batch.skipped)
        for event in batch.events:
            self._event(event, now)
        if batch.oversized:
            self._gap("oversized")

    def _event(self, event: KvEvent, now: float) -> None:
        if type(event) is Stored:
            self._count("stored", len(event.hashes))
            if event.full:
                self._stored(event, now)
            else:
                self._count("left_out", len(event.hashes))
                if event.group is not None:
                    self._groups_left_out.add(event.group)
        elif type(event) is Removed:
            if event.group in self._groups_left_out:
                return
            unknown = sum(1 for one in event.hashes if one not in self.stream.hashes and one not in self.stream.older)
            self._count("removed", len(event.hashes))
            if unknown:
                self._count("removed_unknown", unknown)
            self._fleet.blocks_removed(self.endpoint, self.stream, list(event.hashes), now, event.tier)
        elif type(event) is Cleared:
            self._count("cleared")
            self._drop("event_cleared")
            self._complete = True
            self._believe("cleared")

    def _stored(self, event: Stored, now: float) -> None:
        """Chain the keys of these blocks, and of all orphans that waited for one of them."""
        waiting = [event]
        while waiting:
            one = waiting.pop()
            keys = self._keys(one)
            if keys is None:
                continue
            self._fleet.blocks_stored(
                self.endpoint, self.stream, list(zip(one.hashes, keys, strict=True)), now, one.tier
            )
            self._stored_since_gap += len(keys)
            for theirs in one.hashes if self._orphans else ():
                found = self._orphans.pop(theirs, None)
                if found is not None:
                    self._orphan_blocks -= sum(len(orphan.hashes) for orphan in found)
                    waiting.extend(found)
        self._turnover()
        self._bound()

    def _keys(self, event: Stored) -> list[int] | None:
        """Our keys of these blocks; None when they cannot be told (yet)."""
        if not event.tokens:
            known = [self._key(one) for one in event.hashes]
            if None in known:
                self._count("bad_unknown_move")
                return None
            return [key for key in known if key is not None]
        size = event.block_tokens
        if size < 1 or len(event.tokens) != size * len(event.hashes):
            self._count("bad_length")
            return None
        if self.stream.block_tokens != size:
            self.stream.block_tokens = self.endpoint.block_tokens = size
        if event.parent is None:
            key: int | None = self._roots(event.lora, event.salt, size)
        else:
            key = self._key(event.parent)
            if key is None:
                self._orphan(event)
                return None
        assert key is not None
        if not any(event.mixins):
            return token_keys(event.tokens, key, size, len(event.hashes))
        keys = []
        for position, mixin in enumerate(event.mixins):
            if mixin:
                key = xxh3_64_intdigest(mixin, key)
            key = token_keys(event.tokens[position * size : (position + 1) * size], key, size, 1)[0]
            keys.append(key)
        return keys

    def _key(self, theirs: int) -> int | None:
        key = self.stream.hashes.get(theirs)
        return key if key is not None else self.stream.older.get(theirs)

    def _orphan(self, event: Stored) -> None:
        assert event.parent is not None
        self._count("orphans", len(event.hashes))
        self._orphans.setdefault(event.parent, []).append(event)
        self._orphan_blocks += len(event.hashes)
        while self._orphan_blocks > _ORPHANS_MAX:
            _, dropped = self._orphans.popitem(last=False)
            self._orphan_blocks -= sum(len(orphan.hashes) for orphan in dropped)

    # -- belief -------------------------------------------------------------------------------------------------------

    def _gap(self, reason: str) -> None:
        self._complete = False
        self._stored_since_gap = 0
        self._fleet.exact.gap(self.stream)
        self._enter_if_above(Mode.DEGRADED, reason)
        if self.mode is Mode.APPROXIMATE:
            self._enter(Mode.DEGRADED, reason)

    def _turnover(self) -> None:
        """After a gap: once as many blocks were stored as the cache holds, what is older is gone for certain."""
        if self._complete or self.mode is not Mode.DEGRADED:
            return
        capacity = self.endpoint.kv_capacity_tokens
        if capacity is not None and self._stored_since_gap * self.stream.block_tokens >= capacity:
            self._fleet.exact.drop_older(self.stream)
            self._complete = True
            self._believe("turnover")

    def _bound(self) -> None:
        """Keep the exact index within its cap: the stream that was unused for longest is given up."""
        exact, most = self._fleet.exact, self._fleet.prefix.exact_max_blocks
        if exact.pairs <= most:
            return
        streams = [(s.used_at, e.name, e) for e in self._fleet.endpoints.values() for s in e.streams if s.blocks]
        if streams:
            endpoint = min(streams, key=lambda entry: entry[:2])[2]
            self._fleet.forget_streams(endpoint, "cap")

    def _drop(self, reason: str) -> None:
        if self._is_given_up:
            return
        self._fleet.exact.close(self.stream, reason)
        replacement = self._fleet.exact.open(self.stream.block_tokens)
        self.endpoint.streams = [replacement if stream is self.stream else stream for stream in self.endpoint.streams]
        self.stream = replacement
        self._orphans.clear()
        self._orphan_blocks = 0
        if self.endpoint.cache is not None and len(self.endpoint.streams) == 1:
            self.endpoint.cache.clear()

    def _believe(self, reason: str) -> None:
        """Enter the mode that the facts allow; called after each of them."""
        if self._bad > _BAD_SHARE * _BAD_WINDOW:
            self._enter_if_above(Mode.DEGRADED, "undecodable")
        elif self._complete and not self.sequencer.replaying:
            self._enter(Mode.EXACT, reason)
        elif self._is_given_up:
            self._enter(Mode.APPROXIMATE, "cap")

    @property
    def _is_given_up(self) -> bool:
        return not self._fleet.exact.live & self.stream.bit

    def _is_silent(self, now: float) -> bool:
        if self._heard_at is None or self.mode is Mode.APPROXIMATE:
            return False
        attempts = self.endpoint.attempts_total - self.endpoint.in_flight - self._attempts_at_word
        return now - self._heard_at >= self._silence_s and attempts >= _SILENT_ATTEMPTS

    def _result(self, *, good: bool) -> None:
        if len(self._results) == _BAD_WINDOW:
            self._bad -= not self._results[0]
        self._results.append(good)
        self._bad += not good

    def _enter_if_above(self, mode: Mode, reason: str) -> None:
        if self.mode > mode:
            self._enter(mode, reason)

    def _enter(self, mode: Mode, reason: str) -> None:
        if self._is_given_up:
            mode, reason = Mode.APPROXIMATE, "cap" if reason not in {"gone", "lost"} else reason
        if mode is not self.mode:
            self.transitions.append((self.mode, mode, reason))
            self.mode = mode
        self.stream.mode = int(mode)
        self._fleet.judge(self.endpoint)

    def _count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number
