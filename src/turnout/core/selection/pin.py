"""The session pin (selection §9): a conversation stays with its model until a switch pays for the warm prefix it loses.

`decide` is the rule, a pure function of prices and tokens. `Pins` remembers, per session and knobs, the model that last
completed a turn; it is bounded, slides by its TTL, and can be rebuilt from the ledger at start.
"""

from __future__ import annotations

import enum
import hashlib

import msgspec

from turnout.core.kit.lru import LruMap

HORIZON_TURNS, THRESHOLD_USD, CACHED_PRICE_FACTOR = 3, 0.001, 0.1
_TTL_BY_PROVIDER = {"anthropic": 3600.0}
_TTL_OTHERS_S = 300.0
_KEY_BYTES = 16
_STRIKES = 2
_OVERLOADED, _CLIENT_FIRST, _CLIENT_LAST = 529, 400, 499
_RETRYABLE_4XX = frozenset((408, 409, 425, 429))


class PinReason(enum.StrEnum):
    """Why the pinned model stays or goes. The value is header, metric label and part of the explanation."""

    __hash__ = str.__hash__

    NO_PIN = "no_pin"
    SAME_MODEL = "same_model"
    PIN_MODEL_MISSING = "pin_model_missing"
    NO_PRIOR_USAGE = "no_prior_usage"
    PRICING_MISSING = "pricing_missing"
    EV_POSITIVE = "ev_positive"
    TIER_UPGRADE = "tier_upgrade"
    COLD_PIN_FOLLOW_FRESH = "cold_pin_follow_fresh"
    EV_NEGATIVE = "ev_negative"


class Pin(msgspec.Struct, frozen=True, gc=False):
    """What is remembered of one session under one vector of knobs. Instants are monotonic seconds."""

    model: str
    provider: str
    used_at_s: float
    completed_at_s: float | None = None
    tokens_in: int = 0
    refusals: int = 0
    overloads: int = 0
    barred: tuple[str, ...] = ()


class InputPrice(msgspec.Struct, frozen=True, gc=False):
    """Price of input in USD per 1M tokens; `cached` is the price of a cached read, None when unknown."""

    usd: float
    cached_usd: float | None = None

    def cached(self, factor: float) -> float:
        """Return the price of a cached read."""
        return self.usd * factor if self.cached_usd is None else self.cached_usd


class Stakes(msgspec.Struct, frozen=True, gc=False):
    """What a switch would save and lose."""

    price_pin: InputPrice | None
    price_new: InputPrice | None
    tokens: int
    cold: bool
    cached_share: float = 1.0
    """Share of the input that scheduling expects the pinned model's engine to hold; 1 while nothing better is known."""
    tier_pin: int = 0
    tier_new: int = 0


class Rule(msgspec.Struct, frozen=True, gc=False):
    """The options of the rule."""

    threshold_usd: float = THRESHOLD_USD
    horizon_turns: int = HORIZON_TURNS
    cached_price_factor: float = CACHED_PRICE_FACTOR
    tier_upgrade: bool = False
    cold_follow_fresh: bool = False


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Whether the pinned model stays first, why, and the two sums in USD that decided (0 when none was computed)."""

    reason: PinReason
    stays: bool
    pinned: str = ""
    savings_usd: float = 0.0
    cache_loss_usd: float = 0.0


def decide(pin: Pin | None, fresh: str, *, eligible: bool, stakes: Stakes, rule: Rule) -> Verdict:
    """Decide between the pinned model and the fresh choice, by the first row of the table that applies."""
    if pin is None:
        return Verdict(PinReason.NO_PIN, stays=False)
    if pin.model == fresh:
        return Verdict(PinReason.SAME_MODEL, stays=True, pinned=pin.model)
    if not eligible:
        return Verdict(PinReason.PIN_MODEL_MISSING, stays=False, pinned=pin.model)
    if pin.completed_at_s is None:
        return Verdict(PinReason.NO_PRIOR_USAGE, stays=True, pinned=pin.model)
    if stakes.price_pin is None or stakes.price_new is None:
        return Verdict(PinReason.PRICING_MISSING, stays=True, pinned=pin.model)
    savings, loss = _sums(stakes, stakes.price_pin, stakes.price_new, rule)
    if savings - loss > rule.threshold_usd:
        reason, stays = PinReason.EV_POSITIVE, False
    elif rule.tier_upgrade and stakes.tier_new > stakes.tier_pin:
        reason, stays = PinReason.TIER_UPGRADE, False
    elif rule.cold_follow_fresh and stakes.cold:
        reason, stays = PinReason.COLD_PIN_FOLLOW_FRESH, False
    else:
        reason, stays = PinReason.EV_NEGATIVE, True
    return Verdict(reason, stays, pin.model, savings, loss)


def _sums(stakes: Stakes, pinned: InputPrice, new: InputPrice, rule: Rule) -> tuple[float, float]:
    turns = stakes.tokens * rule.horizon_turns
    share = 0.0 if stakes.cold else stakes.cached_share
    if share <= 0.0:  # nothing is cached on either side: full prices, and nothing to lose
        return (pinned.usd - new.usd) * turns / 1e6, 0.0
    cached_pin, cached_new = pinned.cached(rule.cached_price_factor), new.cached(rule.cached_price_factor)
    if share < 1.0:
        cached_pin = share * cached_pin + (1.0 - share) * pinned.usd
        cached_new = share * cached_new + (1.0 - share) * new.usd
    return (cached_pin - cached_new) * turns / 1e6, (new.usd - cached_new) * stakes.tokens / 1e6


def is_cold(pin: Pin, now: float, tokens_in: int) -> bool:
    """Tell whether the engine's cached tokens are gone: its TTL passed, or the conversation shrank (a rewrite)."""
    if pin.completed_at_s is None:
        return True
    ttl = _TTL_BY_PROVIDER.get(pin.provider, _TTL_OTHERS_S)
    return now - pin.completed_at_s > ttl or tokens_in < pin.tokens_in


def session_key(tenant: str, *, session: str = "", agent: str = "", user_id: str = "", first_text: str = "") -> bytes:
    """Return the key of a session: an explicit id, else who asked and how the conversation began."""
    if session:
        parts = f"session:{session}" + (f"\0agent:{agent}" if agent else "")
    else:
        parts = (f"user_id:{user_id}\0" if user_id else "") + f"first_msg:{first_text}"
    return hashlib.sha256(f"{tenant}\0{parts}".encode("utf-8", "surrogatepass")).digest()[:_KEY_BYTES]


class Pins:
    """All pins, by session key and knobs hash: other knobs start afresh."""

    __slots__ = ("_pins", "_ttl_s")

    def __init__(self, sessions_max: int, ttl_s: float) -> None:
        self._pins: LruMap[tuple[bytes, int], Pin] = LruMap(sessions_max)
        self._ttl_s = ttl_s

    def __len__(self) -> int:
        return len(self._pins)

    def look(self, session: bytes, knobs: int, now: float) -> Pin | None:
        """Return the pin and renew its place; None when there is none or its TTL has passed."""
        pin = self._pins.use((session, knobs))
        if pin is not None and now - pin.used_at_s > self._ttl_s:
            self._pins.drop((session, knobs))
            return None
        return pin

    def completed(self, session: bytes, knobs: int, *, model: str, provider: str, tokens_in: int, now: float) -> None:
        """Pin the model that completed a turn."""
        old = self._pins.peek((session, knobs))
        barred = old.barred if old is not None else ()
        pin = Pin(model, provider, now, now, tokens_in, barred=barred)
        self._pins.put((session, knobs), pin)

    def restore(self, session: bytes, knobs: int, pin: Pin) -> bool:
        """Remember a pin of an earlier process; one that is here already is newer."""
        if self._pins.peek((session, knobs)) is not None:
            return False
        self._pins.put((session, knobs), pin)
        return True

    def refused(self, session: bytes, knobs: int, *, status: int, now: float) -> None:
        """Count a bad ending: the second 4xx in a row drops the pin, the second 529 bars the provider."""
        pin = self._pins.peek((session, knobs))
        if pin is None:
            return
        if status == _OVERLOADED:
            overloads = pin.overloads + 1
            barred = pin.barred
            if overloads >= _STRIKES and pin.provider and pin.provider not in barred:
                barred = (*barred, pin.provider)
            self._pins.put(
                (session, knobs), msgspec.structs.replace(pin, overloads=overloads, barred=barred, used_at_s=now)
            )
        elif _CLIENT_FIRST <= status <= _CLIENT_LAST and status not in _RETRYABLE_4XX:
            if pin.refusals + 1 >= _STRIKES:
                self._pins.drop((session, knobs))
            else:
                self._pins.put((session, knobs), msgspec.structs.replace(pin, refusals=pin.refusals + 1, used_at_s=now))
