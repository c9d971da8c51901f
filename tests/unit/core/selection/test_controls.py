"""Every knob, as header text and as typed member: what passes, what is refused and how the refusal names it."""

from __future__ import annotations

import math

import pytest

from turnout.core.selection import controls
from turnout.core.selection.controls import InvalidControl, Overrides, overrides

NUMBERS = ("alpha", "speed-weight", "output-cost-ratio")
NOT_NUMBERS = (
    "nan", "NaN", "NAN", "-nan", "+nan", "inf", "Infinity", "-Infinity", "+inf", "-0", "+1", "1e0", "1E-400", "1e309", ".5", "5.",
    "0x1", "0x10", "1_0", "1_000", "٣", "１", "True", "true", "0,5", "0.5 0.5", "1.0000000000", "0.50000000000000000000", "0" * 10, "½", "--1", "\x00", "1\n",
)  # fmt: skip


def header(name: str) -> bytes:
    return f"x-turnout-routing-{name}".encode()


@pytest.mark.parametrize("text", NOT_NUMBERS)
@pytest.mark.parametrize("name", [*NUMBERS, "expected-output-tokens"])
def test_knobs_reject_nan_and_infinity(name: str, text: str) -> None:
    raw = text.encode()
    with pytest.raises(InvalidControl) as refused:
        overrides([(header(name), raw)])
    assert refused.value.param == header(name).decode()
    assert len(refused.value.seen) <= 64
    assert "expected" in str(refused.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.5", True, [], {}, -0.1, 1e400])
@pytest.mark.parametrize("knob", ["alpha", "speed_weight", "output_cost_ratio", "expected_output_tokens"])
def test_members_are_typed(knob: str, value: object) -> None:
    with pytest.raises(InvalidControl) as refused:
        overrides([], {knob: value})
    assert refused.value.param == f"turnout.{knob}"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("alpha", ("0", "1", "0.53", "000000001.0", " 0.5\t"), ("1.000000001", "2", "1.1")),
        ("speed-weight", ("0", "1.0"), ("1.1",)),
        ("output-cost-ratio", ("10", "0.25"), ("10.1", "11")),
        ("expected-output-tokens", ("0", "100000", "2000"), ("100001", "1.0", "1e3")),
        ("per-model-verbosity", ("true", "false"), ("1", "0", "True", "TRUE", "yes", "null")),
    ],
)
def test_ranges(name: str, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    for text in good:
        assert overrides([(header(name), text.encode())]) != controls.NONE
    for text in bad:
        with pytest.raises(InvalidControl, match=r"expected .*, got"):
            overrides([(header(name), text.encode())])


def test_an_empty_header_and_a_null_member_are_absent() -> None:
    assert overrides([(header("alpha"), b" \t")], {"alpha": None, "speed_weight": None}) is controls.NONE
    assert not controls.NONE


def test_members_take_integral_floats_as_integers() -> None:
    assert overrides([], {"expected_output_tokens": 1e3}).expected_output_tokens == 1000
    with pytest.raises(InvalidControl):
        overrides([], {"expected_output_tokens": 1.5})


def test_a_header_sent_twice_is_refused() -> None:
    with pytest.raises(InvalidControl, match="the header once"):
        overrides([(header("alpha"), b"0.5"), (header("alpha"), b"0.5")])


def test_header_and_member_must_agree() -> None:
    assert overrides([(header("alpha"), b"0.5")], {"alpha": 0.5}).alpha == 0.5
    with pytest.raises(InvalidControl, match="same value as x-turnout-routing-alpha"):
        overrides([(header("alpha"), b"0.5")], {"alpha": 0.6})


def test_other_headers_are_not_read() -> None:
    assert overrides([(b"x-turnout-session", b"s"), (b"alpha", b"nan")]) is controls.NONE


def test_overrides_know_who_turned_what() -> None:
    turned = overrides([(header("speed-weight"), b"0.1")], {"alpha": 0.2})
    assert turned == Overrides(
        alpha=0.2,
        speed_weight=0.1,
        params=(("alpha", "turnout.alpha"), ("speed_weight", "x-turnout-routing-speed-weight")),
    )
    assert hash(turned) == hash(overrides([(header("speed-weight"), b"0.1")], {"alpha": 0.2}))


def test_members_of_other_pages_become_their_headers() -> None:
    assert controls.header_of("timeout_ms", 1e3) == (b"x-turnout-timeout-ms", b"1000")
    assert controls.header_of("cache_threshold", 0.97) == (b"x-turnout-cache-threshold", b"0.97")
    assert controls.header_of("cache_threshold", 1) == (b"x-turnout-cache-threshold", b"1")
    assert controls.header_of("session", "s-1") == (b"x-turnout-session", b"s-1")
    assert controls.header_of("session", None) is None
    for member, value in (("timeout_ms", "1"), ("timeout_ms", True), ("session", 3), ("cache_threshold", math.nan)):
        with pytest.raises(InvalidControl) as refused:
            controls.header_of(member, value)
        assert refused.value.param == f"turnout.{member}"


def test_an_unknown_member_is_named() -> None:
    complaint = controls.unknown_members({"alpha": 1, "aplha": 2})
    assert complaint is not None
    assert complaint.param == "turnout.aplha"
    assert controls.unknown_members(dict.fromkeys((*controls.KNOBS, *controls.OTHERS))) is None
