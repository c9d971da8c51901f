"""The ledger's own export of `calls` as NDJSON: real arrivals and lengths, and prefixes as far as they can be inferred.

The ledger stores no text and no hashes. So sharing is rebuilt from what it does store: a call of a session repeats the
prompt of the call before it as far as both are long, a shorter one as far as the engine said it had cached; a call
without a session shares what was cached with a preamble of its tenant. These are guesses, and `notes` says so.
"""

from __future__ import annotations

from typing import Any

from xxhash import xxh3_64_intdigest

from turnout.sim.replay.reader import Source
from turnout.sim.replay.trace import Keys, Trace, TraceRequest

BLOCK_TOKENS = 64
_TOKENS_MAX = 2**26
_MS_MAX = 2**53


class _Shared:
    """What is known of the text of one session: how long its last prompt was, and the ids of its blocks."""

    __slots__ = ("ids", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        self.ids: list[int] = []


def read(source: Source) -> Trace:
    """Read all calls that have token counts; the others are left out and counted in `notes`."""
    rows: list[tuple[int, int, dict[str, Any]]] = []
    skipped = 0
    for number, row in source.objects():
        started = source.count(number, "started_at_ms", row.get("started_at_ms"), 0, _MS_MAX)
        if _tokens(source, number, row, "tokens_in", "est_tokens") is None:
            skipped += 1
            continue
        rows.append((started, number, row))
    # The export is ordered by when calls were recorded, a trace by when they came.
    rows.sort(key=lambda entry: (entry[0], entry[1]))
    keys = Keys()
    sessions: dict[tuple[str, str], _Shared] = {}
    requests: list[TraceRequest] = []
    for serial, (started, number, row) in enumerate(rows):
        prompt = max(1, _tokens(source, number, row, "tokens_in", "est_tokens") or 1)
        output = max(1, _tokens(source, number, row, "tokens_out") or 1)
        cached = _tokens(source, number, row, "tokens_cached") or 0
        tenant = str(row.get("tenant", ""))
        model = str(row.get("selected_model") or row.get("requested_model") or "")
        session = row.get("session_id")
        if isinstance(session, str) and session:
            chain = _continued(sessions.setdefault((tenant, session), _Shared()), prompt, cached, serial)
            chain = keys.chain((tenant, session, model), chain)
            name = xxh3_64_intdigest(f"{tenant}\0{session}".encode())
        else:
            common = min(cached, prompt) // BLOCK_TOKENS
            own = prompt // BLOCK_TOKENS - common
            chain = keys.chain((tenant, "", model), list(range(common)))
            keys.extend(chain, serial, 0, own)
            name = 0
        at_s = (started - rows[0][0]) / 1000
        requests.append(TraceRequest(prompt_tokens=prompt, output_tokens=output, keys=chain, at_s=at_s, session=name))
    notes = ["prefixes are inferred from sessions and cached tokens: the ledger stores no text"]
    if skipped:
        notes.append(f"{skipped} calls without a token count were left out")
    return Trace(name=source.name, format="ledger", block_tokens=BLOCK_TOKENS, requests=requests, notes=notes)


def _continued(shared: _Shared, prompt: int, cached: int, serial: int) -> list[int]:
    """Ids of a prompt that goes on from the session's last one; a shorter one is a new text beyond what was cached."""
    full = prompt // BLOCK_TOKENS
    same = shared.tokens // BLOCK_TOKENS if prompt >= shared.tokens else min(cached // BLOCK_TOKENS, full)
    ids = shared.ids[: min(same, full)]
    # Ids of different calls never meet: 2^20 blocks per call are more than any prompt has.
    first = (serial + 1) << 20
    ids += range(first, first + full - len(ids))
    shared.ids = ids
    shared.tokens = prompt
    return ids


def _tokens(source: Source, number: int, row: dict[str, Any], *fields: str) -> int | None:
    for field in fields:
        value = row.get(field)
        if value is not None:
            return source.count(number, field, value, 0, _TOKENS_MAX)
    return None
