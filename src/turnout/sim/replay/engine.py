"""One engine on virtual time, every step accounted for: the rules of `turnout.sim.engine`, without text.

A step with prefill in it is computed alone. A stretch of steps that only decode is one arithmetic series, because each
step adds one token of context per sequence: it is planned as a whole, and cut at the step in progress when something
arrives. Nothing else can change in between, so the result is that of stepping (property test).

`plan` decides what runs next and when it ends, `finish` applies it. Between the two, arrivals wait.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from itertools import islice

from turnout.sim.replay.itl import GapHistogram
from turnout.sim.replay.sequence import Sequence, Shape
from turnout.sim.replay.store import PrefixStore
from turnout.sim.timing import Batch, Roofline


class ReplayEngine:
    """Continuous batching with chunked prefill, a block cache and preemption."""

    def __init__(self, shape: Shape, *, events: bool = False) -> None:
        self.shape = shape
        self.events = events
        self.slowness = 1.0
        self.preemptions = 0
        self.steps = 0
        self.busy_s = 0.0
        self.gaps = GapHistogram()
        self._fresh = 0
        self._reset()

    def _reset(self) -> None:
        shape = self.shape
        self.store = PrefixStore(shape.hold_blocks, shape.cache_blocks, logging=self.events)
        self.waiting: deque[Sequence] = deque()
        self.running: dict[Sequence, None] = {}  # in order of admission
        self.end_at: float | None = None
        self._prefilling: list[Sequence] = []
        self._batch: list[Sequence] = []
        self._ends: list[tuple[int, int, Sequence]] = []
        self._needs = [0] * shape.block_tokens
        self._decodes = 0
        self._context = 0
        self._admitted = 0
        # The plan in progress: when it began, how many steps, and the series of their durations.
        self._began_at = 0.0
        self._count = 0
        self._first_s = 0.0
        self._growth_s = 0.0
        self._cuttable = False
        # What is reported: counts as the last step left them, and who was waiting as the step in progress began.
        self._counts = (0, 0, 0)
        self._left = 0

    @property
    def load(self) -> int:
        """Sequences running and waiting."""
        return len(self.running) + len(self.waiting)

    def add(self, sequence: Sequence, now: float) -> bool:
        """Queue a generation. True when the plan in progress has become shorter: read `end_at` again."""
        blocked = bool(self.waiting) or len(self.running) >= self.shape.max_sequences
        self.waiting.append(sequence)
        return not blocked and self.cut(now)

    def fits(self, prompt: int, outputs: int) -> bool:
        """Whether a generation can ever be served."""
        return -(-(prompt + outputs) // self.shape.block_tokens) <= self.shape.hold_blocks

    def cut(self, now: float) -> bool:
        """End a decode stretch with the step in progress at `now`; True when it has become shorter."""
        if not self._cuttable or self.end_at is None:
            return False
        # Smallest j with began + j·first + growth·j(j−1)/2 ≥ now.
        first, growth, elapsed = self._first_s, self._growth_s, now - self._began_at
        if growth > 0.0:
            half = first - growth / 2
            count = math.ceil((math.sqrt(half * half + 2 * growth * max(0.0, elapsed)) - half) / growth)
        else:
            count = math.ceil(elapsed / first) if first > 0.0 else self._count
        count = max(1, min(count, self._count))
        while count > 1 and self._after(count - 1) >= elapsed:
            count -= 1
        while count < self._count and self._after(count) < elapsed:
            count += 1
        if count >= self._count:
            return False
        self._count = count
        self.end_at = self._began_at + self._after(count)
        return True

    def plan(self, now: float) -> float | None:
        """Start a step, or a stretch of decode steps, and return when it ends; None when there is nothing to do."""
        decodes = self._decodes
        if not decodes and not self._prefilling and not self.waiting:
            return None
        preempted = False
        need = self._needs[self.steps % self.shape.block_tokens]
        if need:
            if need <= self.store.room():
                self.store.take(need)
            else:
                preempted = self._take_in_order(now)
                decodes = self._decodes
        batch = Batch(decodes=decodes, decode_context=self._context + decodes)
        budget = self.shape.max_batched_tokens - decodes
        for sequence in self._prefilling:
            if budget <= 0:
                break
            budget -= self._chunk(sequence, batch, budget)
        if self.waiting and not preempted and budget > 0:
            self._admit_some(batch, budget)
        if not decodes and not self._batch:
            return None
        self._left = len(self.waiting)
        self._began_at = now
        self._first_s = self.shape.timing.duration_s(batch) * self.slowness
        self._growth_s = 0.0
        self._count = 1
        self._cuttable = False
        if not self._batch:
            self._stretch(decodes)
        self.end_at = now + self._after(self._count)
        return self.end_at

    def finish(self) -> tuple[list[Sequence], list[Sequence]]:
        """Apply the plan: the sequences that emitted their first token, and those that ended, in batch order."""
        end = self.end_at
        assert end is not None
        self.end_at = None
        count, decodes = self._count, self._decodes
        if decodes:
            self.gaps.add_series(self._first_s, self._growth_s, count, decodes)
            if count > 1:
                self.store.take(self._needed(self.steps + 1, count - 1))
            self._context += decodes * count
        self.busy_s += end - self._began_at
        self.steps += count
        firsts: list[Sequence] = []
        ended: list[Sequence] = []
        ends = self._ends
        while ends and ends[0][0] <= self.steps:
            _, number, sequence = heapq.heappop(ends)
            if sequence.end_step == self.steps and sequence.number == number:
                self._end(sequence, end)
                ended.append(sequence)
        if self._batch:
            self._finish_prefills(end, firsts, ended)
        self._counts = (len(self.running), self._left, self.store.used)
        return firsts, ended

    def kill(self) -> list[Sequence]:
        """Lose everything: the sequences that were here, in order of admission, then of arrival."""
        lost = [*self.running, *self.waiting]
        self._reset()
        return lost

    def counts(self, now: float) -> tuple[int, int, int]:
        """Sequences running, waiting, and blocks in use as the last step left them: engines count once per step.

        Who has come since is in no report yet, and a step of a full batch takes 0.15 s.
        """
        if self.end_at is not None and self._count > 1 and now - self._began_at >= self._first_s:
            return len(self.running), self._left, self.store.used
        return self._counts

    def waiting_uncached_tokens(self) -> int:
        """Prompt tokens that the store does not have, of sequences left waiting by the step: what SGLang reports."""
        size = self.shape.block_tokens
        found = self.store.found
        left = islice(self.waiting, self._left if self.end_at is not None else None)
        return sum(each.total - found(each.chain, (each.total - 1) // size) * size for each in left)

    def uncomputed_tokens(self) -> int:
        """All prompt tokens that are still to be computed: those of waiting sequences and the rest of started ones."""
        return self.waiting_uncached_tokens() + sum(each.total - each.computed for each in self._prefilling)

    def _after(self, count: int) -> float:
        """Seconds from the start of the plan to the end of its step number `count`."""
        return count * self._first_s + self._growth_s * (count * (count - 1) // 2)

    def _stretch(self, decodes: int) -> None:
        """Plan up to the next end, as far as blocks suffice without preemption."""
        ends = self._ends
        while ends[0][2].end_step != ends[0][0] or ends[0][2].number != ends[0][1]:
            heapq.heappop(ends)  # preempted since
        count = ends[0][0] - self.steps
        if count <= 1:
            return
        room = self.store.room()
        if decodes * (1 + count // self.shape.block_tokens) > room and self._needed(self.steps + 1, count - 1) > room:
            return
        timing = self.shape.timing
        per_token = timing.k if isinstance(timing, Roofline) else timing.per_context_token_s
        self._growth_s = per_token * decodes * self.slowness
        self._count = count
        self._cuttable = True

    def _needed(self, step: int, count: int) -> int:
        """Blocks that decoding takes in `count` steps from number `step`."""
        size = self.shape.block_tokens
        needs = self._needs
        rounds, rest = divmod(count, size)
        total = rounds * self._decodes
        start = step % size
        total += sum(needs[start : start + rest])
        if start + rest > size:
            total += sum(needs[: start + rest - size])
        return total

    def _take_in_order(self, now: float) -> bool:
        """Give blocks to decoding sequences one by one; who finds none preempts from the youngest."""
        slot = self.steps % self.shape.block_tokens
        preempted = False
        for sequence in list(self.running):
            if sequence not in self.running:
                break  # the youngest are gone, so all after this one are
            if sequence.end_step < 0 or sequence.phase != slot:
                continue
            while self.store.room() <= 0:
                preempted = True
                if self._preempt_youngest(now) is sequence:
                    return True
            self.store.take(1)
        return preempted

    def _preempt_youngest(self, now: float) -> Sequence:
        sequence = next(reversed(self.running))
        del self.running[sequence]
        size = self.shape.block_tokens
        if sequence.end_step >= 0:
            blocks = self._stop_decoding(sequence)
            self._name_generated(sequence, sequence.computed // size)
            full = len(sequence.chain)
            self.store.complete(sequence.chain[sequence.held : full])
            self.store.release(sequence.chain, blocks - full)
            sequence.last_at = now
            sequence.total = sequence.prompt + sequence.emitted
        else:
            self._prefilling.remove(sequence)
            self.store.release(sequence.chain[: sequence.held], sequence.private)
        sequence.held = sequence.private = sequence.computed = 0
        self.waiting.appendleft(sequence)
        self.preemptions += 1
        return sequence

    def _stop_decoding(self, sequence: Sequence) -> int:
        """Take a sequence out of the decoding ones and return how many blocks it has in all.

        A preempted one may or may not have got its block for the step in preparation: the count tells.
        """
        size = self.shape.block_tokens
        left = sequence.end_step - self.steps
        sequence.emitted = sequence.outputs - left
        sequence.computed = sequence.prompt + sequence.emitted - 1
        sequence.end_step = -1
        self._decodes -= 1
        self._context -= sequence.computed
        self._needs[sequence.phase] -= 1
        return -(-sequence.computed // size)

    def _name_generated(self, sequence: Sequence, full: int) -> None:
        """Give complete blocks of generated text keys of their own, unless nothing of the sequence has a key."""
        if not sequence.chain and sequence.prompt >= self.shape.block_tokens:
            return
        missing = full - len(sequence.chain)
        if missing > 0:
            first = self._fresh - 1
            self._fresh -= missing
            # A copy: the prompt's chain belongs to the trace.
            sequence.chain = [*sequence.chain, *range(first, self._fresh - 1, -1)]

    def _admit_some(self, batch: Batch, budget: int) -> None:
        """Admit in order of arrival while the batch has room."""
        waiting, running, size = self.waiting, self.running, self.shape.block_tokens
        while waiting and budget > 0 and len(running) < self.shape.max_sequences:
            sequence = waiting[0]
            total = sequence.total
            depth = self.store.found(sequence.chain, (total - 1) // size)
            fresh = -(-total // size) - depth
            if not self.store.admit(sequence.chain, depth, fresh):
                return
            waiting.popleft()
            sequence.held = depth
            sequence.private = fresh
            sequence.computed = depth * size
            if sequence.transferred:
                sequence.computed = total - 1
            if sequence.cached < 0:
                sequence.cached = sequence.computed
            self._admitted += 1
            sequence.number = self._admitted
            running[sequence] = None
            self._prefilling.append(sequence)
            budget -= self._chunk(sequence, batch, budget)

    def _chunk(self, sequence: Sequence, batch: Batch, budget: int) -> int:
        chunk = min(sequence.total - sequence.computed, budget)
        context = sequence.computed + chunk
        sequence.chunk = chunk
        self._batch.append(sequence)
        batch.prefill_tokens += chunk
        batch.chunk_context += chunk * context
        batch.prefill_context += context
        return chunk

    def _finish_prefills(self, end: float, firsts: list[Sequence], ended: list[Sequence]) -> None:
        size = self.shape.block_tokens
        for sequence in self._batch:
            sequence.computed += sequence.chunk
            full = min(sequence.computed // size, len(sequence.chain))
            if full > sequence.held:
                self.store.complete(sequence.chain[sequence.held : full])
                sequence.private -= full - sequence.held
                sequence.held = full
            if sequence.computed < sequence.total:
                continue
            self._prefilling.remove(sequence)
            sequence.emitted += 1
            if sequence.first_at < 0:
                sequence.first_at = end
                firsts.append(sequence)
            else:
                self.gaps.add_series(end - sequence.last_at, 0.0, 1, 1)
            left = sequence.outputs - sequence.emitted
            if not left:
                self._end_prefilled(sequence, end)
                ended.append(sequence)
                continue
            sequence.end_step = self.steps + left
            sequence.phase = (self.steps - sequence.computed) % size
            self._needs[sequence.phase] += 1
            self._decodes += 1
            self._context += sequence.computed
            heapq.heappush(self._ends, (sequence.end_step, sequence.number, sequence))
        self._batch.clear()

    def _end(self, sequence: Sequence, end: float) -> None:
        """End a decoding sequence: its blocks become idle, those of its text too."""
        blocks = self._stop_decoding(sequence)
        full = sequence.computed // self.shape.block_tokens
        held = sequence.held
        known = len(sequence.chain)
        self._name_generated(sequence, full)
        generated = sequence.chain[known:]
        # Text first: it is deeper than the prompt, so it is the first to be evicted.
        self.store.keep(generated)
        self.store.release(sequence.chain[:held], blocks - held - len(generated))
        sequence.ended_at = end
        del self.running[sequence]

    def _end_prefilled(self, sequence: Sequence, end: float) -> None:
        self.store.release(sequence.chain[: sequence.held], sequence.private)
        sequence.ended_at = end
        del self.running[sequence]
