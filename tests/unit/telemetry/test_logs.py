"""What a log line may hold, and that a slow or broken sink costs the caller nothing but counted records."""

from __future__ import annotations

import io
import json
import math
import threading
from typing import Any, Literal

import pytest

from turnout.core.options import Log
from turnout.telemetry.logs import QUEUE_MAX, RATE_PER_S, LogSink, get_logger
from turnout.telemetry.redaction import FIELD_MAX_BYTES, SECRET_NAMES, described, redacted, safe_text

FORMATS: tuple[Literal["json", "console"], ...] = ("json", "console")
CANARY = "canary-9f3a77"


class BlockedStream(io.StringIO):
    """A sink whose reader does not read until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.released = threading.Event()

    def write(self, text: str, /) -> int:
        self.entered.set()
        self.released.wait(10)
        return super().write(text)


class BrokenStream(io.StringIO):
    def write(self, text: str, /) -> int:
        raise BrokenPipeError(len(text))


class Ticks:
    """A clock that moves on by one second with each reading, so that no rate limit bites."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def written(sink: LogSink, stream: io.StringIO) -> list[dict[str, Any]]:
    assert sink.close(5) == 0
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def json_sink(stream: io.StringIO, level: Literal["debug", "warning"] = "debug") -> LogSink:
    return LogSink(Log(format="json", level=level), stream, clock=Ticks())


def raised() -> ValueError:
    try:
        json.loads(CANARY)
    except ValueError as exc:
        return exc
    raise AssertionError("no JSON")


def test_a_record_is_one_json_line_with_time_level_event_and_fields() -> None:
    stream = io.StringIO()
    sink = json_sink(stream)
    get_logger(sink, "gateway").bind(endpoint="e1").info("endpoint up", attempts=3)
    assert written(sink, stream) == [
        {
            "timestamp": "2023-11-14T22:13:21.000Z",
            "level": "info",
            "event": "endpoint up",
            "component": "gateway",
            "endpoint": "e1",
            "attempts": 3,
        }
    ]


def test_secrets_appear_nowhere() -> None:
    """T107 for the log: canaries in every forbidden field, inside other text, nested, in exceptions and objects."""
    for form in FORMATS:
        stream = io.StringIO()
        sink = LogSink(Log(format=form, level="debug"), stream, clock=Ticks())
        log = sink.logger()
        for name in sorted(SECRET_NAMES):
            log.info("a", **{name: CANARY, name.upper(): CANARY, name.replace("_", "-"): CANARY})
            log.info("b", outer={name: CANARY, "list": [{name: CANARY}]})
        log.info("c", note=f"Authorization: Bearer {CANARY}", target=f"/v1/models?api_key={CANARY}&x=1")
        log.info("d", note=f"sent sk-{CANARY} to http://user:{CANARY}@host/", raw=CANARY.encode(), e=KeyError(CANARY))
        sink.put("info", f"e Bearer {CANARY}", {})
        log.fault("f", raised())
        sink.close(5)
        assert stream.getvalue().count("\n") >= 2 * len(SECRET_NAMES) + 4
        assert CANARY not in stream.getvalue()


def test_an_exception_is_named_with_its_place() -> None:
    shown = described(raised())
    assert shown["error"] == "JSONDecodeError"
    assert str(shown["where"]).endswith(":raised")


@pytest.mark.parametrize(
    "char", ["\n", "\r", "\x1b", "\x00", "\x7f", "\x9b", "\u202e", "\u2028", "\u200b", "\ufeff", "\ud800"]
)
def test_control_characters_are_shown_escaped(char: str) -> None:
    assert char not in safe_text(f"a{char}b")
    assert safe_text(f"a{char}b").encode().startswith(b"a\\")


@pytest.mark.parametrize("text", ["x" * 10_000, "你" * 10_000, "\n" * 10_000, "a", ""])
def test_a_field_is_at_most_512_bytes(text: str) -> None:
    assert len(safe_text(text).encode()) <= FIELD_MAX_BYTES


def test_containers_and_numbers_are_bounded_too() -> None:
    nested: dict[str, Any] = {}
    nested["self"] = nested
    shown = redacted({"n": math.nan, "i": 10**400, "deep": nested, "long": list(range(1000)), "object": object()})
    assert shown["n"] == "<float out of range>"
    assert shown["i"] == "<int out of range>"
    assert len(shown["long"]) <= 16  # type: ignore[arg-type]
    assert shown["object"] == "<object>"
    assert len(redacted({f"f{n}": n for n in range(100)})) <= 33


def test_a_field_cannot_forge_level_or_time() -> None:
    stream = io.StringIO()
    sink = json_sink(stream)
    sink.logger(level="error", timestamp="never").info("x")
    assert written(sink, stream)[0]["level"] == "info"


def test_records_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    sink = json_sink(stream, "warning")
    log = sink.logger()
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [line["event"] for line in written(sink, stream)] == ["c", "d"]


def test_a_blocked_sink_drops_and_counts_and_never_blocks() -> None:
    """F77: the pipe is not read; the caller goes on."""
    stream = BlockedStream()
    sink = LogSink(Log(format="json"), stream, clock=Ticks())
    log = sink.logger()
    log.info("first")
    assert stream.entered.wait(10)
    for n in range(QUEUE_MAX + 100):
        log.info("more", n=n)
    assert sink.stats() == {"dropped": 100, "suppressed": 0}
    assert sink.close(0.01) == QUEUE_MAX + 1
    stream.released.set()
    assert sink.close(10) == 0


def test_a_broken_sink_is_counted_and_the_thread_lives_on() -> None:
    sink = LogSink(Log(format="json"), BrokenStream(), clock=Ticks())
    log = sink.logger()
    log.info("a")
    log.info("b")
    assert sink.close(5) == 0
    assert sink.stats()["dropped"] == 2


def test_one_event_has_a_rate_and_the_next_record_tells_what_was_left_out() -> None:
    now = [100.0]
    stream = io.StringIO()
    sink = LogSink(Log(format="json"), stream, clock=lambda: now[0])
    log = sink.logger()
    for _ in range(RATE_PER_S + 7):
        log.warning("slow")
    log.warning("other")
    now[0] = 101.0
    log.warning("slow")
    lines = written(sink, stream)
    assert [line["event"] for line in lines] == ["slow"] * RATE_PER_S + ["other", "slow"]
    assert lines[-1]["suppressed"] == 7
    assert sink.stats()["suppressed"] == 7


def test_auto_means_json_when_the_stream_is_no_terminal() -> None:
    stream = io.StringIO()
    sink = LogSink(Log(format="auto"), stream, clock=Ticks())
    sink.logger().info("x")
    assert written(sink, stream)[0]["event"] == "x"
