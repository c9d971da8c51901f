"""Azure CSV `TIMESTAMP,ContextTokens,GeneratedTokens`: arrivals and lengths; no prompt shares a block with another."""

from __future__ import annotations

from datetime import datetime

from turnout.sim.replay.reader import Source
from turnout.sim.replay.trace import Trace, TraceRequest

BLOCK_TOKENS = 16
_TOKENS_MAX = 2**26
_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_DIGITS = 6  # datetime reads microseconds; the file has a tenth of one


def read(source: Source) -> Trace:
    """Read header and all rows; instants must not decrease."""
    requests: list[TraceRequest] = []
    begin: datetime | None = None
    for number, line in source.lines:
        cells = line.strip().split(",")
        if number == 1:
            if tuple(cells) != _COLUMNS:
                raise source.bad(number, "header", line.strip(), ",".join(_COLUMNS))
            continue
        if cells == [""]:
            continue
        if len(cells) != len(_COLUMNS):
            raise source.bad(number, "columns", len(cells), str(len(_COLUMNS)))
        stamp = _instant(source, number, cells[0])
        begin = begin or stamp
        at_s = (stamp - begin).total_seconds()
        if requests and at_s < requests[-1].at_s:
            raise source.bad(number, "TIMESTAMP", cells[0], "not before that of the line before")
        tokens = [_tokens(source, number, name, cell) for name, cell in zip(_COLUMNS[1:], cells[1:], strict=True)]
        requests.append(
            TraceRequest(prompt_tokens=max(1, tokens[0]), output_tokens=max(1, tokens[1]), keys=[], at_s=at_s)
        )
    return Trace(name=source.name, format="azure", block_tokens=BLOCK_TOKENS, requests=requests)


def _instant(source: Source, number: int, cell: str) -> datetime:
    whole, _, fraction = cell.partition(".")
    try:
        # Without a zone: only differences are used.
        return datetime.fromisoformat(f"{whole}.{fraction[:_DIGITS]:0<{_DIGITS}}")
    except ValueError:
        raise source.bad(number, "TIMESTAMP", cell, "YYYY-MM-DD hh:mm:ss.ffffff") from None


def _tokens(source: Source, number: int, name: str, cell: str) -> int:
    if not cell.isascii() or not cell.isdigit() or int(cell) > _TOKENS_MAX:
        raise source.bad(number, name, cell, f"an integer from 0 to {_TOKENS_MAX}")
    return int(cell)
