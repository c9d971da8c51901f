"""Text to a unit vector: what a selection embeds, the embedder's contract, and the built-in `hashgram-v1`.

The built-in needs no fitted state and no file: hashed words and adjacent word pairs (selection §3). It sees spelling,
not meaning, and takes tens of microseconds, so it runs inline; other embedders run off the loop, in a shell.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter
from typing import Protocol

import numpy as np
import xxhash

from turnout.core.selection.arrays import Floats32

HASHGRAM_ID, HASHGRAM_DIM = "hashgram-v1", 1024
NORM_SLACK = 1e-3
_WORD = re.compile(r"\w+")
_SPLIT_FROM = "\u2e80"  # from here on scripts write without blanks: each character is a word
_SPLIT = re.compile(f"[{_SPLIT_FROM}-\U0010ffff]")
_CONTINUATION = 0x80
_MASK = np.uint64(HASHGRAM_DIM - 1)
_SIGN = np.uint64(1 << 63)


class NoText(ValueError):
    """There is no word to embed."""


class Embedder(Protocol):
    """What makes vectors; `id` and `dim` are what a bundle was fitted with."""

    @property
    def id(self) -> str:
        """Name and version: another id means other vectors."""
        ...

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        ...

    @property
    def inline(self) -> bool:
        """Whether it is quick enough for the event loop; others run on threads."""
        ...

    def embed(self, text: str) -> Floats32:
        """Return the text's unit vector; raises `NoText` when there is nothing to embed."""
        ...


class Hashgram:
    """The built-in embedder."""

    id = HASHGRAM_ID
    dim = HASHGRAM_DIM
    inline = True

    def embed(self, text: str) -> Floats32:
        """Return the unit vector of words and adjacent pairs; raises `NoText` without any word."""
        words = _words(text)
        if not words:
            raise NoText("the text has no word")
        encoded = " ".join(words).encode("utf-8", "surrogatepass").split(b" ")
        counts = Counter(encoded)
        counts.update(map(b" ".join, itertools.pairwise(encoded)))
        # The digest's bytes are the hash, big-endian: a few hundred integers need not be made one by one.
        hashes = np.frombuffer(b"".join(map(xxhash.xxh64_digest, counts)), dtype=">u8").astype(np.uint64)
        log = math.log
        weights = np.array([1.0 if count == 1 else 1.0 + log(count) for count in counts.values()])
        weights[hashes >= _SIGN] *= -1.0
        # bincount adds in the order of first occurrence, in float64: the sums are the same on every machine.
        sums = np.bincount((hashes & _MASK).astype(np.intp), weights, HASHGRAM_DIM)
        norm = math.sqrt(float(sums @ sums))
        if norm == 0.0:  # every feature met its opposite
            raise NoText("the text's features cancel out")
        return (sums / norm).astype(np.float32)


def tail(text: str, max_bytes: int) -> str:
    """Return the last `max_bytes` bytes of a text, the cut moved forward to where a code point starts."""
    if len(text) * 4 <= max_bytes:
        return text
    raw = text.encode("utf-8", "surrogatepass")
    at = max(0, len(raw) - max_bytes)
    while at < len(raw) and raw[at] & 0xC0 == _CONTINUATION:
        at += 1
    return raw[at:].decode("utf-8", "surrogatepass")


def is_unit(vector: object, dim: int) -> bool:
    """Tell whether an embedder kept its contract: float vector of the right length, finite, norm 1 ± 1e-3."""
    if not isinstance(vector, np.ndarray) or vector.shape != (dim,) or vector.dtype.kind != "f":
        return False
    # float32 is enough for a slack of a thousandth, and NaN fails the comparison.
    return abs(math.sqrt(float(vector @ vector)) - 1.0) <= NORM_SLACK


def length_feature(text_bytes: int) -> float:
    """Return the linear head's view of length: doublings of the untruncated text's bytes around 256, halved."""
    return (math.log2(max(1, text_bytes)) - 8.0) / 2.0


def _words(text: str) -> list[str]:
    plain = (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()
    words = _WORD.findall(plain)
    if plain.isascii() or _SPLIT.search(plain) is None:
        return words
    split: list[str] = []
    for word in words:
        split.extend(word if _SPLIT.search(word) else (word,))
    return split
