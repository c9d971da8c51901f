"""Untrusted msgpack into values, and the checks of single fields. Nothing here raises on any input.

A value is taken only when every peer can take it too: the decoders of Megatron's peers refuse map keys other than
strings and bytes, and an engine that refuses a message exits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

DEPTH_MAX = 32
PROMPT_TOKENS_MAX = 1_048_576
INT_MIN, INT_MAX = -(2**63), 2**63 - 1

Check = Callable[[Any], str | None]
"""Returns the name of the field that is wrong, or None."""


class _Bad:
    """Stands for bytes that are no acceptable value."""


BAD: Final = _Bad()

_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_KEYS = frozenset({str, bytes})
_any = msgspec.msgpack.Decoder().decode
_tokens = msgspec.msgpack.Decoder(tuple[Annotated[int, Meta(ge=INT_MIN, le=INT_MAX)], ...]).decode
_parts = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def parts_of(raw: msgspec.Raw | bytes) -> list[msgspec.Raw] | None:
    """Split an array into its elements, undecoded; None when it is none. The elements are not validated yet."""
    try:
        return _parts(raw)
    except Exception:  # noqa: BLE001 - RecursionError and UnicodeDecodeError are no DecodeErrors
        return None


def value_of(raw: msgspec.Raw | bytes, depth: int = 0) -> Any:
    """Decode one value that stands `depth` containers deep; BAD when a peer could not take it."""
    try:
        value = _any(raw)
    except Exception:  # noqa: BLE001 - as above
        return BAD
    return value if acceptable(value, DEPTH_MAX - depth) else BAD


def prompt_of(raw: msgspec.Raw | bytes, depth: int) -> Any:
    """Decode a prompt; token ids, the usual case, in one typed step: a tuple says that each id was checked."""
    try:
        return _tokens(raw)
    except Exception:  # noqa: BLE001 - as above; the general path tells what is wrong
        return value_of(raw, depth)


def acceptable(value: Any, depth: int) -> bool:
    """Say whether a value holds no extension type, no foreign map key and at most `depth` levels of containers."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if depth <= 0:
        return False
    if kind is dict:
        if not set(map(type, value)) <= _KEYS:
            return False
        items = value.values()
    elif kind is list:
        items = value
    else:
        return False
    # One pass in C tells most lists and maps apart from those with containers inside.
    kinds = set(map(type, items))
    if kinds <= _SCALARS:
        return True
    return all(acceptable(item, depth - 1) for item in items if type(item) not in _SCALARS)


def is_int(value: Any) -> bool:
    """An integer of 64 bits; a bool is none."""
    return type(value) is int and INT_MIN <= value <= INT_MAX


def natural(name: str) -> Check:
    """An integer from 0 on."""
    return lambda value: None if is_int(value) and value >= 0 else name


def integer(name: str) -> Check:
    """Any integer."""
    return lambda value: None if is_int(value) else name


def mapping(name: str) -> Check:
    """A map with string keys."""
    return lambda value: None if _is_map(value) else name


def optional_mapping(name: str) -> Check:
    """A map with string keys, or nil."""
    return lambda value: None if value is None or _is_map(value) else name


def integers(name: str) -> Check:
    """A list of integers, which may be empty."""
    return lambda value: None if type(value) is list and all(map(is_int, value)) else name


def prompt(value: Any) -> str | None:
    """A string, or token ids as a tuple, neither empty."""
    if type(value) is str and value:
        return None
    # What the typed decoder refused is still a list and holds something that is no token id.
    return None if type(value) is tuple and 1 <= len(value) <= PROMPT_TOKENS_MAX else "prompt"


def sampling(value: Any) -> str | None:
    """A map of sampling parameters that no engine dies of.

    An engine sets each key as an attribute and compares some values before it guards itself, so that wrong types,
    private names and the names of its methods end its process.
    """
    if not _is_map(value):
        return "sampling"
    for name, is_fine in _POISON.items():
        if name in value and not is_fine(value[name]):
            return name
    if value.get("return_prompt_top_n_logprobs") and value.get("skip_prompt_log_probs"):
        return "return_prompt_top_n_logprobs"
    if any(key.startswith("_") or key in _METHODS for key in value):
        return "sampling"
    return None


def connect_option(value: Any) -> str | None:
    """What a client may say of itself."""
    return None if _is_map(value) else "options"


def _is_map(value: Any) -> bool:
    return type(value) is dict and set(map(type, value)) <= {str}


def _at_least(least: int) -> Callable[[Any], bool]:
    return lambda value: is_int(value) and value >= least


_METHODS = frozenset({"serialize", "deserialize", "add_attributes"})
_POISON: dict[str, Callable[[Any], bool]] = {
    "streaming_interval": _at_least(1),
    "top_n_logprobs": _at_least(0),
    "num_tokens_to_generate": lambda value: value is None or (is_int(value) and value >= 0),
}
