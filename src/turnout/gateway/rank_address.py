"""How a request names the data-parallel rank that is to serve it: SGLang reads a member, vLLM a header (engines §6)."""

from __future__ import annotations

from turnout.core.attempt import Attempt
from turnout.dialects.splice import with_rank
from turnout.engines.vllm_mooncake import rank_header


def addressed(attempt: Attempt, body: bytes, forward: bytes) -> tuple[bytes, bytes]:
    """Return body and headers for the rank that was picked; as they are when the endpoint may choose."""
    rank = attempt.seat.dp_rank if attempt.seat is not None else -1
    if rank < 0:
        return body, forward
    if attempt.endpoint.family == "sglang":
        return with_rank(body, rank), forward
    return body, forward + rank_header(rank)
