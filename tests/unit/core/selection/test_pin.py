"""The session pin: keys, the switch rule row by row, and what makes a pin go (selection §9)."""

from __future__ import annotations

import pytest

from turnout.core.selection.pin import InputPrice, Pin, PinReason, Pins, Rule, Stakes, decide, is_cold, session_key

PIN = Pin("old", "p", 0.0, 0.0, 100)
RULE = Rule()


def stakes(old: float, new: float, tokens: int, *, cold: bool = False, **more: int) -> Stakes:
    return Stakes(InputPrice(old), InputPrice(new), tokens, cold=cold, **more)


@pytest.mark.parametrize(
    ("pin", "fresh", "eligible", "at_stake", "rule", "reason", "stays"),
    [
        (None, "new", True, stakes(5, 1, 50_000), RULE, PinReason.NO_PIN, False),
        (PIN, "old", False, stakes(5, 1, 50_000), RULE, PinReason.SAME_MODEL, True),
        (PIN, "new", False, stakes(5, 1, 50_000), RULE, PinReason.PIN_MODEL_MISSING, False),
        (Pin("old", "p", 0.0), "new", True, stakes(5, 1, 50_000), RULE, PinReason.NO_PRIOR_USAGE, True),
        (PIN, "new", True, Stakes(None, InputPrice(1), 50_000, cold=False), RULE, PinReason.PRICING_MISSING, True),
        (PIN, "new", True, Stakes(InputPrice(1), None, 50_000, cold=False), RULE, PinReason.PRICING_MISSING, True),
        (PIN, "new", True, stakes(5, 1, 50_000), RULE, PinReason.EV_POSITIVE, False),
        (PIN, "new", True, stakes(1, 5, 50_000), RULE, PinReason.EV_NEGATIVE, True),
        (PIN, "new", True, stakes(5, 1, 3333), RULE, PinReason.EV_NEGATIVE, True),
        (PIN, "new", True, stakes(5, 1, 3335), RULE, PinReason.EV_POSITIVE, False),
        (PIN, "new", True, stakes(5, 2.5, 50_000), RULE, PinReason.EV_NEGATIVE, True),
        (PIN, "new", True, stakes(5, 2.5, 50_000, cold=True), RULE, PinReason.EV_POSITIVE, False),
        (PIN, "new", True, stakes(1, 5, 50_000, tier_pin=1, tier_new=2), RULE, PinReason.EV_NEGATIVE, True),
        (
            PIN,
            "new",
            True,
            stakes(1, 5, 50_000, tier_pin=1, tier_new=2),
            Rule(tier_upgrade=True),
            PinReason.TIER_UPGRADE,
            False,
        ),
        (
            PIN,
            "new",
            True,
            stakes(1, 5, 50_000, tier_pin=2, tier_new=2),
            Rule(tier_upgrade=True),
            PinReason.EV_NEGATIVE,
            True,
        ),
        (
            PIN,
            "new",
            True,
            stakes(1, 5, 50_000, cold=True),
            Rule(cold_follow_fresh=True),
            PinReason.COLD_PIN_FOLLOW_FRESH,
            False,
        ),
        (PIN, "new", True, stakes(1, 5, 50_000), Rule(cold_follow_fresh=True), PinReason.EV_NEGATIVE, True),
    ],
)
def test_Decide(
    *, pin: Pin | None, fresh: str, eligible: bool, at_stake: Stakes, rule: Rule, reason: PinReason, stays: bool
) -> None:
    verdict = decide(pin, fresh, eligible=eligible, stakes=at_stake, rule=rule)
    assert (verdict.reason, verdict.stays) == (reason, stays)


@pytest.mark.parametrize(
    ("old", "new", "tokens", "cold", "savings", "loss"),
    [
        (5, 1, 50_000, False, 0.06, 0.045),
        (1, 5, 50_000, False, -0.06, 0.225),
        (5, 1, 3333, False, 0.0039996, 0.0029997),
        (5, 1, 3335, False, 0.004002, 0.0030015),
        (5, 2.5, 50_000, False, 0.0375, 0.1125),
        (5, 2.5, 50_000, True, 0.375, 0.0),
    ],
)
def test_the_sums_that_decide(*, old: float, new: float, tokens: int, cold: bool, savings: float, loss: float) -> None:
    verdict = decide(PIN, "new", eligible=True, stakes=stakes(old, new, tokens, cold=cold), rule=RULE)
    assert (verdict.savings_usd, verdict.cache_loss_usd) == (pytest.approx(savings), pytest.approx(loss))


def test_a_known_price_of_cached_reads_is_used() -> None:
    at_stake = Stakes(InputPrice(5, 2.5), InputPrice(1, 0.0), 1_000_000, cold=False)
    verdict = decide(PIN, "new", eligible=True, stakes=at_stake, rule=RULE)
    assert (verdict.savings_usd, verdict.cache_loss_usd) == (7.5, 1.0)


def test_golden_session_keys() -> None:
    assert session_key("acme", session="s-1").hex() == "06521f2a426df18f380efc767199e46b"
    assert session_key("acme", first_text="Fix the build").hex() == "e40f256b56a379be16be19e814c004b6"
    assert session_key("acme", user_id="u-7", first_text="Fix the build").hex() == "68d85742d5f2bc16abcbd9960c5d99df"
    assert session_key("acme", session="s-1", agent="x") != session_key("acme", session="s-1")
    assert session_key("acme", session="s-1") != session_key("acme2", session="s-1")


def test_a_pin_is_cold_after_its_providers_ttl_or_a_rewrite() -> None:
    pin = Pin("m", "", 0.0, 0.0, tokens_in=1000)
    assert not is_cold(pin, 300.0, 1000)
    assert is_cold(pin, 300.1, 1000)
    assert is_cold(pin, 1.0, 999)
    assert not is_cold(Pin("m", "anthropic", 0.0, 0.0), 3600.0, 0)
    assert is_cold(Pin("m", "", 0.0), 0.0, 0)


def test_pins_slide_expire_and_are_bounded() -> None:
    pins = Pins(2, 3600.0)
    for number in range(3):
        pins.completed(b"%d" % number, 7, model="m", provider="", tokens_in=1, now=0.0)
    assert len(pins) == 2
    assert pins.look(b"0", 7, 1.0) is None
    assert pins.look(b"2", 8, 1.0) is None  # other knobs start afresh
    assert pins.look(b"2", 7, 3600.0) is not None
    assert pins.look(b"2", 7, 3600.1) is None
    assert len(pins) == 1


def test_two_refusals_drop_a_pin_and_a_success_between_keeps_it() -> None:
    pins = Pins(10, 3600.0)
    pins.completed(b"s", 0, model="m", provider="p", tokens_in=1, now=0.0)
    pins.refused(b"s", 0, status=400, now=1.0)
    pins.refused(b"s", 0, status=429, now=1.0)  # retryable: says nothing about the model
    pins.completed(b"s", 0, model="m", provider="p", tokens_in=1, now=2.0)
    pins.refused(b"s", 0, status=404, now=3.0)
    assert pins.look(b"s", 0, 3.0) is not None
    pins.refused(b"s", 0, status=400, now=4.0)
    assert pins.look(b"s", 0, 4.0) is None
    pins.refused(b"other", 0, status=400, now=4.0)
    assert len(pins) == 0


def test_two_overloads_bar_the_provider_for_the_session() -> None:
    pins = Pins(10, 3600.0)
    pins.completed(b"s", 0, model="m", provider="p", tokens_in=1, now=0.0)
    pins.refused(b"s", 0, status=529, now=1.0)
    pin = pins.look(b"s", 0, 1.0)
    assert pin is not None
    assert pin.barred == ()
    pins.refused(b"s", 0, status=529, now=2.0)
    pins.completed(b"s", 0, model="n", provider="q", tokens_in=1, now=3.0)
    pin = pins.look(b"s", 0, 3.0)
    assert pin is not None
    assert (pin.model, pin.barred) == ("n", ("p",))


@pytest.mark.parametrize(
    ("share", "savings", "loss"), [(1.0, 0.0375, 0.1125), (0.5, 0.20625, 0.05625), (0.0, 0.375, 0.0)]
)
def test_what_the_engine_is_expected_to_hold_weighs_the_loss(share: float, savings: float, loss: float) -> None:
    pin = Pin("old", "", 0.0, 0.0, 10)
    stakes = Stakes(InputPrice(5.0), InputPrice(2.5), 50_000, cold=False, cached_share=share)
    verdict = decide(pin, "new", eligible=True, stakes=stakes, rule=Rule())
    assert (verdict.savings_usd, verdict.cache_loss_usd) == pytest.approx((savings, loss))
    assert verdict.stays == (share == 1.0)


def test_a_restored_pin_gives_way_to_a_newer_one() -> None:
    held = Pins(10, 60.0)
    old = Pin("old", "", 1.0, 1.0, 10)
    assert held.restore(b"s", 1, old)
    held.completed(b"s", 1, model="new", provider="", tokens_in=5, now=2.0)
    assert not held.restore(b"s", 1, old)
    found = held.look(b"s", 1, 2.0)
    assert found is not None
    assert found.model == "new"
