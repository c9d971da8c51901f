"""How long a prompt is at least, and whether any endpoint could hold it (request-path §7).

The estimate is a deliberate under-count in characters, never bytes: a request is refused only when it is certain that
no endpoint can take it. The engine is the exact wall.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

# Each of these code points is about one token of its own in today's tokenizers, so it weighs two units of a quarter.
_WIDE: Final = re.compile("[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]")


def units(text: str) -> int:
    """Code points of `text`, CJK ones counted twice."""
    if text.isascii():
        return len(text)
    # Removing the wide ones in C is several times faster than visiting each of them.
    return 2 * len(text) - len(_WIDE.sub("", text))


def estimate_floor(units_total: int, messages: int, tools_bytes: int, chars_per_token: float = 4.0) -> int:
    """Tokens the prompt has at the very least; at least 1.

    `max(1, (Σ units + 8 · messages + tools_bytes // 4) // chars_per_token)`, in integers when the divisor is whole.
    """
    return max(1, int((units_total + 8 * messages + tools_bytes // 4) // chars_per_token))


def context_exceeded(estimate: int, contexts: Iterable[int | None]) -> int | None:
    """The largest known context when `estimate` is above every one of them (C1), else None: the request may enter.

    Equal passes; one unknown context lets it pass; no contexts at all say nothing.
    """
    largest = 0
    for context in contexts:
        if context is None or context >= estimate:
            return None
        largest = max(largest, context)
    return largest or None
