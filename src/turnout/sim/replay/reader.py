"""Files of traffic, plain or gzip, in any of the known formats; the first line tells which (scheduling §6).

A line that is not what its format says is a `BadTrace` that names the file, the line and the field.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from turnout.sim.replay.trace import BadTrace, Trace

Line = tuple[int, str]
_LINE_MAX = 16_777_216
_SECONDS_MAX = 3.2e8  # ten years


def read(files: list[Path], *, spread: bool = True, share_tools: bool = False) -> Trace:
    """Read all files as one trace; they must be of one format, and follow one another in time."""
    from turnout.sim.replay.formats import azure, ledger, mooncake, sessions

    opened = [(file, _lines(file)) for file in files]
    trace: Trace | None = None
    for file, lines in opened:
        try:
            number, first = next(lines)
        except StopIteration:
            raise BadTrace(f"{file}: the file is empty, expected a trace") from None
        kind = _recognise(file, first)
        if trace is not None and trace.format != kind:
            raise BadTrace(f"{file}: the format is {kind}, expected {trace.format} as in {files[0]}")
        source = Source(file, _chained((number, first), lines))
        match kind:
            case "mooncake":
                read_one = mooncake.read(source, spread=spread)
            case "sessions":
                read_one = sessions.read(source, share_tools=share_tools)
            case "azure":
                read_one = azure.read(source)
            case _:
                read_one = ledger.read(source)
        trace = read_one if trace is None else _joined(trace, read_one)
    if trace is None:
        raise BadTrace("no file given, expected at least one")
    if not trace.size:
        raise BadTrace(f"{files[0]}: there is no request in it, expected at least one")
    return trace


class Source:
    """The lines of one file, and complaints about them."""

    def __init__(self, file: Path, lines: Iterator[Line]) -> None:
        self.file = file
        self.lines = lines

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.file.name

    def bad(self, number: int, field: str, seen: object, wanted: str) -> BadTrace:
        """Return the complaint about one field of one line."""
        shown = repr(seen)
        return BadTrace(f"{self.name} line {number}: {field} is {shown[:80]}, expected {wanted}")

    def objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Decode each line as a JSON object."""
        for number, line in self.lines:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise BadTrace(f"{self.name} line {number}: {error}, expected a JSON object") from None
            if not isinstance(value, dict):
                raise BadTrace(f"{self.name} line {number}: a JSON {type(value).__name__}, expected an object")
            yield number, value

    def count(self, number: int, field: str, value: object, low: int, high: int) -> int:
        """Return an integer field in its range."""
        if type(value) is not int or not low <= value <= high:
            raise self.bad(number, field, value, f"an integer from {low} to {high}")
        return value

    def seconds(self, number: int, field: str, value: object) -> float:
        """Return a duration field: a number of at least 0, at most ten years."""
        if type(value) not in {int, float} or not 0 <= value <= _SECONDS_MAX:  # type: ignore[operator]
            raise self.bad(number, field, value, "seconds of at least 0")
        return float(value)  # type: ignore[arg-type]


def _lines(file: Path) -> Iterator[Line]:
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        opener: Callable[..., Any] = gzip.open if packed else open
        with opener(file, "rt", encoding="utf-8", errors="strict", newline=None) as text:
            number = 0
            while line := text.readline(_LINE_MAX + 1):
                number += 1
                if len(line) > _LINE_MAX:
                    raise BadTrace(f"{file.name} line {number}: longer than {_LINE_MAX} characters")
                yield number, line
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadTrace(f"{file}: {error}") from error


def _chained(first: Line, rest: Iterator[Line]) -> Iterator[Line]:
    yield first
    yield from rest


def _recognise(file: Path, line: str) -> str:
    if line.upper().startswith("TIMESTAMP,"):
        return "azure"
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if isinstance(value, dict):
        if "reqs" in value:
            return "sessions"
        if "hash_ids" in value or "timestamp" in value:
            return "mooncake"
        if "call_id" in value:
            return "ledger"
    raise BadTrace(
        f"{file.name} line 1: no known trace, expected a JSON object with hash_ids (mooncake), reqs (sessions) or "
        "call_id (ledger export), or the header TIMESTAMP,ContextTokens,GeneratedTokens (azure)"
    )


def _joined(one: Trace, two: Trace) -> Trace:
    # Keys of two files come from two counters: shifted apart, no block is taken for another file's.
    shift = max((request.keys[-1] for request in _all(one) if request.keys), default=0)
    shift = max(shift, max((max(request.keys) for request in _all(one) if request.keys), default=0))
    for request in _all(two):
        request.keys = [key + shift for key in request.keys]
    late = one.requests[-1].at_s if one.requests else 0.0
    for request in two.requests:
        request.at_s += late
    for session in two.sessions:
        session.number += len(one.sessions)
    return Trace(
        name=f"{one.name}+{two.name}",
        format=one.format,
        block_tokens=one.block_tokens,
        requests=one.requests + two.requests,
        sessions=one.sessions + two.sessions,
        notes=one.notes + two.notes,
    )


def _all(trace: Trace) -> Iterator[Any]:
    yield from trace.requests
    for session in trace.sessions:
        yield from session.requests
