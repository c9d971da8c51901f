"""What a decision says, and why an endpoint is no candidate."""

from __future__ import annotations

import enum


class DropReason(enum.StrEnum):
    """Why an endpoint is no candidate. The order is that of the filters; from `BREAKER_OPEN` on they are soft."""

    MODEL_NOT_SERVED = "model_not_served"
    ROLE_MISMATCH = "role_mismatch"
    DIALECT_NOT_SPOKEN = "dialect_not_spoken"
    CONTEXT_TOO_SMALL = "context_too_small"
    NEVER_FITS = "never_fits"
    TRIED = "tried"
    DRAINING = "draining"
    GONE = "gone"
    UNREACHABLE = "unreachable"
    SATURATED = "saturated"
    CAPABILITY_MISSING = "capability_missing"
    BREAKER_OPEN = "breaker_open"
    EJECTED = "ejected"
    PROBE_FAILING = "probe_failing"
    STANDBY = "standby"
    COOLDOWN = "cooldown"
    SLOW_START = "slow_start"


class Verdict(enum.StrEnum):
    """What a decision says. `HELD`: ask again later, nothing was taken; `NO_CANDIDATE`: `dropped` says why."""

    PICKED = "picked"
    HELD = "held"
    NO_CANDIDATE = "no_candidate"
