"""Whether an engine's tokenise call counts a chat as its completions do (engines §1): proved before it is used.

The tokens of a fixed conversation must begin with those of its beginning, and the first request that was scheduled by
them must have cost as many as were counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout.core.errors import Outcome

if TYPE_CHECKING:
    from turnout.gateway.run import Run

# A message that ends with a line: what a tokeniser joins across messages would tell of nothing else.
_FIRST: Final = b'{"role":"system","content":"Be brief.\\n"}'
_SECOND: Final = b'{"role":"user","content":"What is a turnout?"}'
_ASKED: Final = b'{"model":%b,"messages":[%b],"add_generation_prompt":false}'


class Parity:
    """What one endpoint incarnation has proved; `holds` is None while that is open."""

    __slots__ = ("_beginning", "_first", "_paid", "holds")

    def __init__(self) -> None:
        self.holds: bool | None = None
        self._beginning: list[int] = []
        self._first: tuple[Run, int] | None = None
        self._paid = False

    @property
    def usable(self) -> bool:
        """Tell whether chats may be tokenised, in the light of what the first request has cost."""
        if self._first is not None and self._first[0].outcome is not None:
            (run, count), self._first = self._first, None
            cost = _cost(run)
            if cost is not None:
                self._paid, self.holds = True, cost == count
        return self.holds is True

    def begun(self, tokens: list[int]) -> None:
        """Take the tokens of the first message alone."""
        self._beginning = tokens

    def whole(self, tokens: list[int]) -> None:
        """Take those of both messages."""
        self.holds = tokens[: len(self._beginning)] == self._beginning

    def counted(self, run: Run, tokens: int) -> None:
        """Remember a request until it is known what one has cost."""
        if not self._paid and self._first is None:
            self._first = (run, tokens)


def question(model: bytes, *, whole: bool) -> bytes:
    """Return the body that asks for the tokens of the fixed conversation, or of its first message."""
    return _ASKED % (model, _FIRST + b"," + _SECOND if whole else _FIRST)


def _cost(run: Run) -> int | None:
    """Tokens of the prompt as the engine that served it has billed them."""
    if run.outcome is not Outcome.COMPLETED or run.exchange is None:
        return None
    usage = run.exchange.attempts[-1].usage
    return None if usage is None else usage.tokens_in
