"""Bytes, tokens and the next word: everything the simulated model knows about language.

A conversation is rendered by scheduling §1.1, tokens are pieces of at most four bytes, and the next word is a function
of all bytes so far. Text therefore depends on content alone, never on the endpoint, the batch or the time.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import xxhash

from turnout.core.prefix.rendering import PROMPT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TOKEN_BYTES = 4
"""A token is one piece of at most this many bytes, packed as little-endian u32."""
MASK = 2**64 - 1

# Sixteen letters per position give exactly 4096 words; a word and its space fill one token.
_FIRST = "bcdfghjklmnprstv"
_MIDDLE = "aeiouylrnhwstmdk"
_LAST = "ndrtslkmpgaeioyx"
WORDS: tuple[str, ...] = tuple(f"{a}{b}{c} " for a in _FIRST for b in _MIDDLE for c in _LAST)
_ENCODED: tuple[bytes, ...] = tuple(word.encode() for word in WORDS)

# A word ends with a space, a newline or a tag byte and is cut from its start: either the end is within reach of this
# piece, or the piece is four bytes (fewer only at the end of the text).
_PIECE = re.compile(rb"[^ \n\xf8-\xff]{0,3}[ \n\xf8-\xff]|[^ \n\xf8-\xff]{1,4}")


def pack(rendered: bytes) -> bytes:
    """The tokens of rendered bytes, four bytes each, zero-padded."""
    return b"".join([piece.ljust(TOKEN_BYTES, b"\0") for piece in _PIECE.findall(rendered)])


def unpack(packed: bytes) -> list[int]:
    """Token ids of packed tokens."""
    return list(struct.unpack(f"<{len(packed) // TOKEN_BYTES}I", packed))


def pack_ids(ids: Sequence[int]) -> bytes:
    """Packed tokens of token ids. Raises struct.error for an id outside u32."""
    return struct.pack(f"<{len(ids)}I", *ids)


def rendered_of(packed: bytes) -> bytes:
    """The bytes that packed tokens stand for. Zero bytes at the end of a piece are padding and are not restored."""
    return b"".join([packed[i : i + TOKEN_BYTES].rstrip(b"\0") for i in range(0, len(packed), TOKEN_BYTES)])


def readable(rendered: bytes) -> str:
    """Rendered bytes as text for `/detokenize`: the leading prompt tag is structure and is left out."""
    return rendered.removeprefix(PROMPT).decode("utf-8", "replace")


def text_seed(model: str, seed: int) -> int:
    """`s` of engines §7: the same for every replica of one model."""
    return xxhash.xxh3_64_intdigest(model.encode(), seed)


class Writer:
    """Emits the words that follow `so_far`, one per call; both hashes are extended, never recomputed."""

    __slots__ = ("_end", "_mean", "_next", "ended")

    def __init__(self, *, seed: int, mean_output_tokens: int, so_far: bytes) -> None:
        self._next = xxhash.xxh3_64(so_far, seed)
        self._end = xxhash.xxh3_64(so_far, (seed + 1) & MASK)
        self._mean = mean_output_tokens
        self.ended = False
        """Whether the text ends naturally after the word emitted last."""

    def word(self) -> tuple[str, bytes]:
        """The next word as text and as packed token."""
        index = self._next.intdigest() & 0xFFF
        word = _ENCODED[index]
        self._next.update(word)
        self._end.update(word)
        self.ended = not self._end.intdigest() % self._mean
        return WORDS[index], word


class StopSearch:
    """Finds the first stop string in emitted text and holds back what might still become one."""

    __slots__ = ("_held", "_keep", "_stops", "hit")

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._keep = max((len(stop) for stop in self._stops), default=1) - 1
        self._held = ""
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """Text that may be shown; sets `hit` when a stop string is complete, and then cuts before it."""
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.hit = min(found)
            shown, self._held = self._held[:at], ""
            return shown
        cut = max(len(self._held) - self._keep, 0)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        shown, self._held = self._held, ""
        return shown
