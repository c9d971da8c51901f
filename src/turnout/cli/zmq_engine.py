"""`turnout engine --transport zmq`: the simulated engine behind a coordinator door instead of an HTTP socket.

Its tokens are bytes: a prompt of token ids is taken as bytes, a word is answered as its bytes, so that a door with the
tokenizer `bytes` shows text.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping

import typer

from turnout.coordinator.engine import Emit, EnginePeer
from turnout.core.prefix.rendering import PROMPT
from turnout.sim.faults import FaultPlan
from turnout.sim.options import EngineOptions
from turnout.sim.pump import Pump
from turnout.sim.sequence import Emitted, Work
from turnout.sim.text import pack

_BYTE = 0xFF


class _Answer:
    """Hands the words of one generation on as bytes; `ending` makes the next word the last."""

    def __init__(self, number: int, emit: Emit) -> None:
        self._number = number
        self._emit = emit
        self.ending = False

    def emitted(self, event: Emitted) -> bool:
        """Take one word; False ends the generation."""
        is_last = event.finish is not None or self.ending
        final = {"num_cached_tokens": event.cached_tokens, "generated_text": None} if is_last else None
        self._emit(self._number, list(event.text.encode()), final)
        return not is_last


class SimGenerator:
    """The simulated engine as the generator of an `EnginePeer`."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._pump = Pump(options, FaultPlan(options.seed, options.faults, engine=options.name))
        self._answers: dict[int, _Answer] = {}

    def begin(self, number: int, prompt: str | list[int], sampling: Mapping[str, object], emit: Emit) -> None:
        """Queue a generation; one that can never fit fails at once, as a real engine's does."""
        raw = prompt.encode() if isinstance(prompt, str) else bytes(token & _BYTE for token in prompt)
        wanted = sampling.get("num_tokens_to_generate")
        rendered = PROMPT + raw
        words = wanted if isinstance(wanted, int) else self._options.mean_output_tokens
        work = Work(
            prompt=rendered,
            tokens=pack(rendered),
            max_tokens=max(1, words),
            ignore_eos=sampling.get("termination_id") == -1,
        )
        answer = _Answer(number, self._forgetting(emit))
        self._answers[number] = answer
        try:
            self._pump.run(work, answer)
        except ValueError:
            self._forgetting(emit)(number, [], {"status": "FAILED", "generated_tokens": []})

    def abort(self, number: int) -> None:
        """End with the next word."""
        answer = self._answers.get(number)
        if answer is not None:
            answer.ending = True

    def _forgetting(self, emit: Emit) -> Emit:
        def emit_and_forget(number: int, tokens: list[int], finished: Mapping[str, object] | None) -> None:
            if finished is not None:
                self._answers.pop(number, None)
            emit(number, tokens, finished)

        return emit_and_forget


async def serve_zmq(options: EngineOptions, connect: str) -> None:
    """Register at the door and serve until a signal or a STOP of the door."""
    stopped = asyncio.Event()
    reasons: list[str] = []
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)

    def ended(why: str) -> None:
        reasons.append(why)
        stopped.set()

    peer = EnginePeer(connect, options.name.encode(), SimGenerator(options), on_end=ended)
    peer.start()
    typer.echo(f"registered at {connect} as {options.name}")
    await stopped.wait()
    peer.close()
    if reasons and reasons[0] != "stopped":
        typer.echo(f"ended: {reasons[0]}", err=True)
        raise SystemExit(1)
