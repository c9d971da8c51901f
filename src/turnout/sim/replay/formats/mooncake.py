"""Mooncake JSONL: one request per line with the ids of its 512-token prefix blocks (scheduling §6)."""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

from turnout.sim.replay.reader import Source
from turnout.sim.replay.trace import Keys, Trace, TraceRequest

BLOCK_TOKENS = 512
_TOKENS_MAX = 2**26
_MS_MAX = 2**53


def read(source: Source, *, spread: bool) -> Trace:
    """Read all lines; `spread` sets records of one stamp evenly apart, up to the next stamp."""
    keys = Keys()
    requests: list[TraceRequest] = []
    stamps: list[int] = []
    for number, row in source.objects():
        stamp = source.count(number, "timestamp", row.get("timestamp"), 0, _MS_MAX)
        if stamps and stamp < stamps[-1]:
            raise source.bad(number, "timestamp", stamp, f"at least {stamps[-1]}, that of the line before")
        prompt = source.count(number, "input_length", row.get("input_length"), 1, _TOKENS_MAX)
        output = source.count(number, "output_length", row.get("output_length"), 0, _TOKENS_MAX)
        ids = row.get("hash_ids")
        if not isinstance(ids, list) or not all(type(each) is int for each in ids):
            raise source.bad(number, "hash_ids", ids, "a list of integers")
        if len(ids) != -(-prompt // BLOCK_TOKENS):
            raise source.bad(number, "hash_ids", len(ids), f"{-(-prompt // BLOCK_TOKENS)} ids, one per 512 tokens")
        scope = (row.get("model"), row.get("tenant"))
        session = row.get("session_id")
        stamps.append(stamp)
        requests.append(
            TraceRequest(
                prompt_tokens=prompt,
                output_tokens=max(1, output),
                # The last id of a partial block never matches: it has no key.
                keys=keys.chain(scope, ids[: prompt // BLOCK_TOKENS]),
                session=0 if session is None else xxh3_64_intdigest(str(session).encode()),
            )
        )
    for request, at_s in zip(requests, _instants(stamps, spread=spread), strict=True):
        request.at_s = at_s
    return Trace(name=source.name, format="mooncake", block_tokens=BLOCK_TOKENS, requests=requests)


def _instants(stamps: list[int], *, spread: bool) -> list[float]:
    """Seconds since the first stamp. The last group is spread over the gap before it."""
    instants: list[float] = []
    start = 0
    gap = 0
    while start < len(stamps):
        end = start
        while end < len(stamps) and stamps[end] == stamps[start]:
            end += 1
        if end < len(stamps):
            gap = stamps[end] - stamps[start]
        step = gap / (end - start) if spread else 0.0
        instants += [(stamps[start] - stamps[0] + step * place) / 1000 for place in range(end - start)]
        start = end
    return instants
