"""What vLLM tells of its load beside a whole answer: a response header → part of a `Report` (engines §2).

Asked with `endpoint-load-metrics-format`, it answers with `endpoint-load-metrics: JSON {"named_metrics": {…}}` or
`TEXT named_metrics.name=value, …`; the form that came is read, whichever was asked for. Names are those of the metrics
page without their family, and the same rules hold: what is absent, negative or absurd is unknown, never zero.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from turnout.core.fleet.report import Report
from turnout.engines.load_reports import COUNTS, KV_USAGE, RATIO_MAX

LOAD_HEADER: Final = b"endpoint-load-metrics"
ASK_LOAD: Final = b"endpoint-load-metrics-format: JSON\r\n"
_MAX_BYTES: Final = 4096  # vLLM writes two metrics, some hundred bytes
_COUNT_MAX: Final = 1e9  # more requests than any engine holds
_FAMILY: Final = b"vllm:"
_USAGE: Final = "kv_usage_ratio"
_SIGNALS: Final = ("waiting", "running")

# Name on the page without its family → our signal. Counters of the page are not told of here: they need a whole report.
_KNOWN: Final[dict[str, str]] = {
    name.removeprefix(_FAMILY).decode(): signal
    for signal, names in [
        *((signal, [one for names in COUNTS[signal] for one in names]) for signal in _SIGNALS),
        (_USAGE, list(KV_USAGE)),
    ]
    for name in names
    if name.startswith(_FAMILY)
}


class Told(msgspec.Struct, frozen=True, gc=False):
    """What one header says. `bad`: it, or a value that it names, cannot be true; the others count all the same."""

    report: Report | None = None
    bad: bool = False


class _Metrics(msgspec.Struct, gc=False):
    named_metrics: dict[str, Any] = {}


_BAD: Final = Told(bad=True)
_read_json = msgspec.json.Decoder(_Metrics).decode


def read_load_header(value: bytes) -> Told:
    """Read the value of `endpoint-load-metrics`. Without any known name there is no report."""
    if len(value) > _MAX_BYTES:
        return _BAD
    form, _, rest = value.partition(b" ")
    if form.upper() == b"JSON":
        try:
            named = _read_json(rest).named_metrics
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _BAD
    elif form.upper() == b"TEXT":
        named = _text(rest.decode("latin-1"))
    else:
        return _BAD
    return _told(named)


def _text(rest: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for item in rest.split(","):
        name, _, number = item.strip().partition("=")
        if name.startswith("named_metrics."):
            try:
                named[name.removeprefix("named_metrics.")] = float(number)
            except ValueError:
                named[name.removeprefix("named_metrics.")] = None
    return named


def _told(named: dict[str, Any]) -> Told:
    found: dict[str, float] = {}
    bad = False
    for name, signal in _KNOWN.items():  # in the order of the table: the first name that is present wins
        if name not in named or signal in found:
            continue
        value = named[name]
        most = RATIO_MAX if signal == _USAGE else _COUNT_MAX
        if type(value) not in (int, float) or not 0 <= value <= most or math.isnan(value):
            bad = True
        else:
            found[signal] = value
    if not found:
        return Told(bad=bad)
    waiting, running = [int(found[signal]) if signal in found else None for signal in _SIGNALS]
    return Told(Report(waiting=waiting, running=running, kv_usage_ratio=found.get(_USAGE)), bad)
