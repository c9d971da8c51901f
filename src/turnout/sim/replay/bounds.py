"""How much of the prompts any placement could have found cached: one pooled LRU of all engines' memory, and no limit.

Requests are taken in the order in which they came in the run that is judged, since in a closed loop policies shape it.
"""

from __future__ import annotations

from collections import OrderedDict

from turnout.sim.replay.trace import TraceRequest


def pooled_lru(order: list[TraceRequest], block_tokens: int, capacity_blocks: int) -> float:
    """Share of prompt tokens found in one LRU cache that has the blocks of all engines together."""
    cache: OrderedDict[int, None] = OrderedDict()
    found = total = 0
    for request in order:
        total += request.prompt_tokens
        keys = request.keys
        depth = _depth(keys, cache, (request.prompt_tokens - 1) // block_tokens)
        found += depth * block_tokens
        # Deepest first, so that of one chain the root stays longest, as in the engines.
        for key in reversed(keys):
            cache[key] = None
            cache.move_to_end(key)
        while len(cache) > capacity_blocks:
            cache.popitem(last=False)
    return found / total if total else 0.0


def unlimited(order: list[TraceRequest], block_tokens: int) -> float:
    """Share of prompt tokens that some earlier request had, too."""
    seen: dict[int, None] = {}
    found = total = 0
    for request in order:
        total += request.prompt_tokens
        depth = _depth(request.keys, seen, (request.prompt_tokens - 1) // block_tokens)
        found += depth * block_tokens
        seen.update(dict.fromkeys(request.keys[depth:]))
    return found / total if total else 0.0


def _depth(keys: list[int], cache: OrderedDict[int, None] | dict[int, None], limit: int) -> int:
    """Blocks found without a hole; present blocks have present parents, so bisection is enough."""
    low, high = 0, min(limit, len(keys))
    if high and keys[high - 1] in cache:
        return high
    while low < high:
        middle = (low + high) // 2
        if keys[middle] in cache:
            low = middle + 1
        else:
            high = middle
    return low
