"""What our own errors say where an outcome alone does not say enough: no address, no key, no prompt."""

from __future__ import annotations

from typing import Final

POISON: Final = "poison_suspected"
CODES: Final[dict[str, str]] = {
    POISON: "Two engines lost their connection while they worked on this request; it is not tried on a third one.",
}


def unspoken(model: str, path: str) -> str:
    """Say that no engine of a model serves a path."""
    return f"No endpoint of {model} serves {path}: none of them lists its dialect among `dialects`."


def too_large(model: str, floor: int) -> str:
    """Say that a prompt is larger than every cache that it would have to fit into."""
    return f"This request needs at least {floor} tokens, more than the whole KV cache of any endpoint of {model} holds."


def too_long(model: str, floor: int, context_max: int) -> str:
    """Say that a prompt fits no endpoint."""
    return (
        f"This request needs at least {floor} tokens, but the maximum context length of {model} is "
        f"{context_max} tokens. Please reduce the length of the messages."
    )
