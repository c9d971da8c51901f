"""The section `[disagg]`: when an exchange is split into a prefill and a decode leg, and how long each leg may take.

Apart from `options`, which is long enough; the same conventions hold. Nothing here matters while every endpoint has
the role `both`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from turnout.core.option_types import Count, Ratio, Seconds, Section, doc
from turnout.core.scheduling_options import PolicyName

Decider = Literal["seconds", "threshold", "always", "conditional"]
SecondsOrNone = Annotated[float, Meta(ge=0, le=3600)]
Tokens = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Disagg(Section, frozen=True, kw_only=True):
    """Prefill on one endpoint, decode on another."""

    decider: Annotated[
        Decider, doc("seconds: split when the cheapest pair is sooner than the cheapest endpoint alone.")
    ] = "seconds"
    min_uncached_tokens: Annotated[Tokens, doc("threshold: split above this many uncached tokens.")] = 256
    margin_s: Annotated[SecondsOrNone, doc("seconds: a pair must be cheaper by more than this.")] = 0.0
    interference: Annotated[
        float, Meta(ge=0, le=10), doc("seconds: each running answer makes a prefill beside it this much dearer.")
    ] = 0.1
    memory_max: Annotated[Ratio, doc("Above this share of its KV memory an endpoint does not serve alone.")] = 0.9
    prefill_policy: Annotated[PolicyName | None, doc("Rule for the prefill leg; absent: the pool's.")] = None
    decode_policy: Annotated[
        PolicyName | None, doc("Rule for the decode leg; absent: scored with the prefill leg, else memory_aware.")
    ] = None
    transfer_setup_s: Annotated[SecondsOrNone, doc("Fixed part of a transfer of KV blocks.")] = 0.002
    transfer_bytes_per_s: Annotated[float, Meta(ge=1e3, le=1e15), doc("Speed of a transfer.")] = 10e9
    kv_bytes_per_token: Annotated[float, Meta(ge=1, le=1e9), doc("Size of the KV blocks of one token.")] = 131_072.0
    max_pairs: Annotated[Count, doc("Pairs that are scored; beyond, the best 32 of either role.")] = 1024
    max_pair_attempts: Annotated[Count, doc("Attempts with two legs before an endpoint alone is preferred.")] = 2
    solo_relief_tokens: Annotated[
        Tokens, doc("With no prefill endpoint free, up to this many tokens are prefilled beside the answers.")
    ] = 4096
    prefill_timeout_s: Annotated[Seconds, doc("A prefill leg may take this, or four times its prediction.")] = 30.0
    first_byte_after_prefill_s: Annotated[Seconds, doc("From the end of the prefill to the decode leg's output.")] = (
        15.0
    )
    lease_s: Annotated[Seconds, doc("How long a prefill engine keeps blocks that nobody has fetched.")] = 30.0
    quarantine_s: Annotated[Seconds, doc("A pair whose transfer failed rests this long, doubling to ten times.")] = 60.0
    handover_max_s: Annotated[
        Seconds, doc("From the prefill's answer to the contact to the decode endpoint; beyond, another one is asked.")
    ] = 1.0
    drain_s: Annotated[Seconds, doc("A prefill answer still open after the decode leg's end is read this long.")] = 30.0
