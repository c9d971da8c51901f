"""Continuous batching as a pure model: time is given, the same arrivals give the same steps and bytes.

One step: every decoding sequence computes one token, the rest of the batch budget goes to prefill chunks in queue
order. `begin` decides the step and says when it ends, `finish` applies it and returns what was emitted. Between the
two, arrivals wait and aborted sequences keep their blocks, as in a real engine.
"""

from __future__ import annotations

from collections import deque

import xxhash

from turnout.sim.blocks import BlockStore, extend_chain
from turnout.sim.kv_journal import KvJournal
from turnout.sim.options import EngineOptions
from turnout.sim.sequence import Counters, Emitted, Latencies, Sequence, Work
from turnout.sim.text import TOKEN_BYTES, Writer, text_seed, unpack
from turnout.sim.timing import Batch, timing_of


class EngineModel:
    """One engine. Not thread-safe; ids count from 0 in order of arrival."""

    def __init__(self, options: EngineOptions, rank: int = 0) -> None:
        self.options = options
        self.counters = Counters()
        self.latencies = Latencies()
        self.journal: KvJournal | None = None
        if options.kv_events:
            self.journal = KvJournal(options.block_tokens, options.kv_encoding, options.kv_hashes, rank)
        self.store = BlockStore(options.blocks, None if self.journal is None else self.journal.removed)
        self.slowness = 1.0
        """Multiplies the duration of each step that begins; the fault `slow` sets it."""
        self._timing = timing_of(options)
        self._text_seed = text_seed(options.model, options.seed)
        self._jitter_seed = xxhash.xxh3_64_intdigest(options.name.encode(), options.seed)
        self._block_bytes = options.block_tokens * TOKEN_BYTES
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._live: dict[int, Sequence] = {}
        self._pinned: dict[int, Sequence] = {}
        self._batch: list[Sequence] = []
        self._step_end: float | None = None

    @property
    def running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences not yet admitted, or preempted."""
        return len(self._waiting)

    @property
    def pinned(self) -> int:
        """Ended sequences whose blocks are still held for another engine."""
        return len(self._pinned)

    def unpin(self, number: int) -> None:
        """Give back the blocks of an ended sequence; unknown ids are ignored."""
        sequence = self._pinned.pop(number, None)
        if sequence is not None:
            self._release(sequence)

    @property
    def waiting_uncached_tokens(self) -> int:
        """Tokens of waiting sequences that the store does not have."""
        return sum(self.lacks(sequence.work) for sequence in self._waiting)

    def lacks(self, work: Work) -> int:
        """Tokens of a prompt that the store does not have."""
        size = self.options.block_tokens
        chain: list[int] = []
        root = xxhash.xxh3_64_intdigest(f"{self.options.model}\0{work.cache_salt}".encode())
        extend_chain(chain, work.tokens, self._block_bytes, root)
        total = len(work.tokens) // TOKEN_BYTES
        return total - self.store.found(chain[: (total - 1) // size]) * size

    @property
    def idle(self) -> bool:
        """Whether no sequence is running or waiting."""
        return not self._live and not self._running and not self._waiting

    def add(self, work: Work, now: float) -> int:
        """Queue one generation and return its id. Raises ValueError when it can never fit."""
        prompt_tokens = len(work.tokens) // TOKEN_BYTES
        if (
            not prompt_tokens >= 1
            or work.max_tokens < 1
            or prompt_tokens + work.max_tokens > self.options.context_tokens
        ):
            message = (
                f"prompt tokens = {prompt_tokens}, max_tokens = {work.max_tokens}: expected at least 1 each and "
                f"{self.options.context_tokens} together at most"
            )
            raise ValueError(message)
        writer = Writer(
            seed=self._text_seed,
            mean_output_tokens=self.options.mean_output_tokens,
            so_far=work.prompt,
        )
        root = xxhash.xxh3_64_intdigest(f"{self.options.model}\0{work.cache_salt}".encode())
        sequence = Sequence(self.counters.requests, work, writer, root, now)
        self.counters.requests += 1
        self._live[sequence.id] = sequence
        self._waiting.append(sequence)
        return sequence.id

    def abort(self, number: int) -> None:
        """End a generation: at once while it waits, else at the end of the step. Unknown ids are ignored."""
        sequence = self._live.pop(number, None)
        if sequence is None:
            return
        self.counters.aborted += 1
        sequence.aborted = True
        if self._step_end is None:
            self._drop_aborted()
        elif sequence not in self._running:
            self._waiting.remove(sequence)

    def begin(self, now: float) -> float | None:
        """Start a step and return the time at which it ends; None when there is nothing to do."""
        if self._step_end is not None:
            message = f"begin at {now}: a step is in progress until {self._step_end}"
            raise RuntimeError(message)
        batch = Batch()
        preempted = self._schedule_decodes(batch)
        budget = self.options.max_num_batched_tokens - batch.decodes
        budget = self._schedule_running_prefills(batch, budget)
        if not preempted:
            self._schedule_arrivals(batch, budget, now)
        if not self._batch:
            return None
        self.counters.steps += 1
        self._step_end = now + self._duration_s(batch)
        return self._step_end

    def finish(self) -> list[Emitted]:
        """Apply the step in progress: tokens of live sequences in batch order."""
        end = self._step_end
        if end is None:
            message = "finish: no step is in progress"
            raise RuntimeError(message)
        self._step_end = None
        emitted: list[Emitted] = []
        for sequence in self._batch:
            sequence.computed += sequence.chunk
            if sequence.aborted:
                continue
            self._complete_blocks(sequence)
            if sequence.computed * TOKEN_BYTES == len(sequence.tokens):
                sequence.prefilled = True
                emitted.append(self._emit(sequence, end))
        self._batch.clear()
        self._drop_aborted()
        return emitted

    def step(self, now: float) -> tuple[float, list[Emitted]] | None:
        """`begin` and `finish` at once, for virtual time: the end of the step and what it emitted."""
        end = self.begin(now)
        return None if end is None else (end, self.finish())

    def _duration_s(self, batch: Batch) -> float:
        duration = self._timing.duration_s(batch) * self.slowness / self.options.speed
        if self.options.jitter:
            draw = xxhash.xxh3_64_intdigest(self.counters.steps.to_bytes(8, "little"), self._jitter_seed) / 2**63 - 1.0
            duration *= 1.0 + self.options.jitter * draw
        return duration

    def _schedule_decodes(self, batch: Batch) -> bool:
        """Put every decoding sequence into the batch; when blocks run out, preempt from the youngest."""
        preempted = False
        index = 0
        running = self._running
        while index < len(running):
            sequence = running[index]
            index += 1
            if not sequence.prefilled:
                continue
            needs_block = sequence.computed >= (sequence.held + sequence.partial) * self.options.block_tokens
            if needs_block:
                while not self.store.take():
                    preempted = True
                    if self._preempt_youngest() is sequence:
                        return True
                sequence.partial += 1
            sequence.chunk = 1
            self._batch.append(sequence)
            batch.decodes += 1
            batch.decode_context += sequence.computed + 1
        return preempted

    def _schedule_running_prefills(self, batch: Batch, budget: int) -> int:
        for sequence in self._running:
            if budget <= 0:
                break
            if not sequence.prefilled:
                budget -= self._schedule_chunk(sequence, batch, budget)
        return budget

    def _schedule_arrivals(self, batch: Batch, budget: int, now: float) -> None:
        """Admit in order of arrival while the batch has room: what this step computes, the next admission can find."""
        waiting = self._waiting
        while waiting and budget > 0 and len(self._running) < self.options.max_num_seqs:
            sequence = waiting[0]
            if not self._admit(sequence):
                return
            waiting.popleft()
            self._running.append(sequence)
            if sequence.cached_tokens is None:
                sequence.cached_tokens = sequence.computed
                self.counters.prompt_tokens += sequence.total
                self.latencies.queue_s.append(now - sequence.arrived_at)
            budget -= self._schedule_chunk(sequence, batch, budget)

    def _schedule_chunk(self, sequence: Sequence, batch: Batch, budget: int) -> int:
        chunk = min(sequence.total - sequence.computed, budget)
        context = sequence.computed + chunk
        sequence.chunk = chunk
        self._batch.append(sequence)
        batch.prefill_tokens += chunk
        batch.chunk_context += chunk * context
        batch.prefill_context += context
        return chunk

    def _admit(self, sequence: Sequence) -> bool:
        """Hold the blocks of all its tokens; what the store has counts as computed, except the last token."""
        total = sequence.total
        size = self.options.block_tokens
        extend_chain(sequence.chain, sequence.tokens, self._block_bytes, sequence.root)
        depth = self.store.found(sequence.chain[: (total - 1) // size])
        fresh = -(-total // size) - depth
        if not self.store.admit(sequence.chain[:depth], fresh):
            return False
        sequence.held = depth
        sequence.partial = fresh
        sequence.computed = total - 1 if sequence.work.transferred and sequence.cached_tokens is None else depth * size
        self.counters.prefix_tokens_asked += total
        self.counters.prefix_tokens_found += sequence.computed
        return True

    def _preempt_youngest(self) -> Sequence:
        """Take the blocks of the sequence admitted last; it is recomputed, prompt and output, when it fits again."""
        sequence = self._running.pop()
        self._release(sequence)
        sequence.computed = 0
        sequence.prefilled = False
        self._waiting.appendleft(sequence)
        self.counters.preemptions += 1
        return sequence

    def _release(self, sequence: Sequence) -> None:
        self.store.release(sequence.chain[: sequence.held], sequence.partial)
        sequence.held = 0
        sequence.partial = 0

    def _complete_blocks(self, sequence: Sequence) -> None:
        full = sequence.computed // self.options.block_tokens
        if full == sequence.held:
            return
        extend_chain(sequence.chain, sequence.tokens, self._block_bytes, sequence.root)
        for position in range(sequence.held, full):
            is_new = self.store.complete(sequence.chain[position])
            if is_new and self.journal is not None:
                self._journalise(sequence, position, self.journal)
        sequence.partial -= full - sequence.held
        sequence.held = full

    def _journalise(self, sequence: Sequence, position: int, journal: KvJournal) -> None:
        size = self._block_bytes
        parent = sequence.chain[position - 1] if position else None
        tokens = unpack(bytes(sequence.tokens[position * size : (position + 1) * size]))
        journal.stored([sequence.chain[position]], parent, tokens, sequence.work.cache_salt)

    def _emit(self, sequence: Sequence, end: float) -> Emitted:
        work = sequence.work
        text, token = sequence.writer.word()
        sequence.tokens += token
        sequence.output_tokens += 1
        self.counters.generated_tokens += 1
        if sequence.last_token_at is None:
            self.latencies.ttft_s.append(end - sequence.arrived_at)
        else:
            self.latencies.itl_s.append(end - sequence.last_token_at)
        sequence.last_token_at = end
        stop = sequence.stop
        # As in vLLM, what is written before `min_tokens` cannot complete a stop string.
        if stop is not None and sequence.output_tokens >= work.min_tokens:
            text = stop.feed(text)
        finish: str | None = None
        natural = sequence.writer.ended and not work.ignore_eos and sequence.output_tokens >= work.min_tokens
        if natural or (stop is not None and stop.hit is not None):
            finish = "stop"
        elif sequence.output_tokens >= work.max_tokens:
            finish = "length"
        if finish is not None:
            self._end(sequence, finish)
            if stop is not None:
                text += stop.flush()
        return Emitted(
            id=sequence.id,
            text=text,
            output_tokens=sequence.output_tokens,
            cached_tokens=sequence.cached_tokens or 0,
            finish=finish,
            stop_hit=None if stop is None else stop.hit,
        )

    def _end(self, sequence: Sequence, finish: str) -> None:
        if finish == "stop":
            self.counters.stopped += 1
        else:
            self.counters.length += 1
        del self._live[sequence.id]
        self._running.remove(sequence)
        if sequence.work.pinned:
            self._pinned[sequence.id] = sequence
        else:
            self._release(sequence)

    def _drop_aborted(self) -> None:
        for sequence in [each for each in self._running if each.aborted]:
            self._running.remove(sequence)
            self._release(sequence)
        if self._waiting and any(each.aborted for each in self._waiting):
            self._waiting = deque(each for each in self._waiting if not each.aborted)
