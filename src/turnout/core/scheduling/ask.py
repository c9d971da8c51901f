"""What scheduling is asked for one attempt."""

from __future__ import annotations

import math
from typing import Final

_HASH_BLOCKS: Final = 4
_NO_CHAINS: Final[dict[int, list[int]]] = {}
_NONE: Final[frozenset[str]] = frozenset()


class Ask:
    """What the scheduler has to know of one request.

    `keys` must not change afterwards. `tokens` is the estimate T, `block_tokens` how many tokens one block stands for
    (text: `block_bytes / bytes_per_token`). `relax` allows soft filters to be relaxed on a later attempt (N2 (5));
    a first attempt, one without `tried`, may always relax. `may_hold`: the caller has a queue for a `HELD` verdict;
    `arrived_s` and `deadline_s` bound how long. `policy` overrides that of the pool. `chains` has the keys of the `tok`
    space per block size of engines, for endpoints whose blocks are known from KV events. `streams` tells whether the
    first byte of the answer will be seen as it comes. `dialect` is set when some endpoint of the pool does not speak
    the request's. `weak` names endpoints that have not shown what the request needs (tools): used only when there are
    no others. `pairs` counts attempts with two legs so far; `whole` says why it must not be split into a prefill
    and a decode leg, empty: it may; `decode` names the decode endpoint that an attempt before had chosen and not used:
    only its prefill is looked for anew.
    """

    # A plain class: compiled, its attributes are read as in C, dozens of times per request.
    __slots__ = (
        "arrived_s",
        "block_tokens",
        "chains",
        "deadline_s",
        "decode",
        "dialect",
        "estimate_floor",
        "keys",
        "may_hold",
        "model",
        "pairs",
        "policy",
        "prompt_bytes",
        "relax",
        "session",
        "streams",
        "tokens",
        "tried",
        "weak",
        "whole",
    )

    def __init__(
        self,
        model: str,
        keys: list[int],
        tokens: int,
        estimate_floor: int,
        tried: tuple[str, ...] = (),
        session: int = 0,
        *,
        relax: bool = False,
        block_tokens: float = 64.0,
        policy: str = "",
        may_hold: bool = False,
        arrived_s: float = 0.0,
        deadline_s: float = math.inf,
        chains: dict[int, list[int]] = _NO_CHAINS,  # never changed in place
        prompt_bytes: int = 0,
        streams: bool = True,
        dialect: str = "",
        weak: frozenset[str] = _NONE,
        pairs: int = 0,
        whole: str = "",
        decode: str = "",
    ) -> None:
        self.model = model
        self.keys = keys
        self.tokens = tokens
        self.estimate_floor = estimate_floor
        self.tried = tried
        self.session = session
        self.relax = relax
        self.block_tokens = block_tokens
        self.policy = policy
        self.may_hold = may_hold
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.chains = chains
        self.prompt_bytes = prompt_bytes
        self.streams = streams
        self.dialect = dialect
        self.weak = weak
        self.pairs = pairs
        self.whole = whole
        self.decode = decode

    @property
    def affinity(self) -> int:
        """What says which requests belong together: the session, else the fourth block or the last before it; or 0."""
        keys = self.keys
        return self.session or (keys[min(len(keys), _HASH_BLOCKS) - 1] if keys else 0)
