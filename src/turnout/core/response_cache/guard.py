"""The guard of semantic matches: near vectors are not the same question when numbers, negations or names differ.

Each kind is a multiset of what was found in the text, kept as a digest: equal multisets, equal digests. The strict
guard also compares the sets of content words, because the built-in embedder sees spelling and not meaning.
"""

from __future__ import annotations

import enum
import hashlib
import re
import unicodedata
from collections.abc import Iterable

import msgspec

_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_NUMBER_LIST = "zero one two three four five six seven eight nine ten eleven twelve hundred thousand million"
_NUMBER_WORDS = frozenset(_NUMBER_LIST.split())
_NEGATION_LIST = "no not never none neither nor without except unless cannot"
_NEGATIONS = frozenset(_NEGATION_LIST.split())
_CONTRACTED = ("n't", "n\u2019t")
_QUOTED = re.compile(r'"([^"]+)"|\u201c([^\u201d]+)\u201d|`([^`]+)`|(?<!\w)\'([^\']+)\'(?!\w)')
_INSIDE = frozenset("_/\\@.:")
_SENTENCE_ENDS = (".", "!", "?", ":", "\u3002")
_STOP_LIST = """
a an and are as at be been but by can could did do does for from had has have he her him his how i if in into is
it its just me my of on or our out she should so some than that the their them then there these they this those to
too us was we were what when where which who whom why will with would you your please
"""
_STOP = frozenset(_STOP_LIST.split())
_DIGEST_BYTES = 16


class Kind(enum.StrEnum):
    """What differs: label of the rejection counter."""

    __hash__ = str.__hash__

    NUMBERS = "numbers"
    NEGATIONS = "negations"
    ENTITIES = "entities"
    WORDS = "words"


class Features(msgspec.Struct, frozen=True, gc=False):
    """Digests of what a text holds."""

    numbers: bytes
    negations: bytes
    entities: bytes
    words: bytes


def features(text: str) -> Features:
    """Read a text once; what is kept does not grow with it."""
    plain = unicodedata.normalize("NFKC", text)
    raw = plain.split()
    tokens = [_stripped(token) for token in raw]
    folded = [token.casefold() for token in tokens]
    numbers = [*_NUMBER.findall(plain), *(word for word in folded if word in _NUMBER_WORDS)]
    negations = [word for word in folded if word in _NEGATIONS or word.endswith(_CONTRACTED)]
    entities = [next(part for part in found if part) for found in _QUOTED.findall(plain)]
    for at, token in enumerate(tokens):
        starts = at == 0 or raw[at - 1].endswith(_SENTENCE_ENDS)
        if _is_entity(token) or (token[:1].isupper() and not starts):
            entities.append(token)
    content = {word for word in folded if word and word not in _STOP}
    return Features(_digest(numbers), _digest(negations), _digest(entities), _digest(content))


def differs(asked: Features, stored: Features, *, strict: bool) -> Kind | None:
    """Return the first kind in which two texts differ; None: the match passes."""
    if asked.numbers != stored.numbers:
        return Kind.NUMBERS
    if asked.negations != stored.negations:
        return Kind.NEGATIONS
    if asked.entities != stored.entities:
        return Kind.ENTITIES
    return Kind.WORDS if strict and asked.words != stored.words else None


def _is_entity(token: str) -> bool:
    if any(letter.isdigit() for letter in token) and any(letter.isalpha() for letter in token):
        return True
    return any(letter.isupper() for letter in token[1:]) or not _INSIDE.isdisjoint(token)


def _stripped(token: str) -> str:
    start, end = 0, len(token)
    while start < end and not token[start].isalnum():
        start += 1
    while end > start and not token[end - 1].isalnum():
        end -= 1
    return token[start:end]


def _digest(found: Iterable[str]) -> bytes:
    # Each item with its length: no text can imitate the border between two others.
    total = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for item in sorted(found):
        raw = item.encode("utf-8", "surrogatepass")
        total.update(b"%d:" % len(raw))
        total.update(raw)
    return total.digest()
