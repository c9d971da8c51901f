"""vLLM's concurrent hand-over (Mooncake push): both engines get the request at once and know each other by a transfer.

The prefill engine's ranks introduce themselves at its bootstrap address; which of them computes is the router's choice,
said in a header.
"""

from __future__ import annotations

import msgspec

from turnout.engines import vllm_nixl

FLOW = "mooncake"
QUERY_PATH = "/query"
_RANKS_MAX = 256


class _Rank(msgspec.Struct, gc=False):
    engine_id: str


_query = msgspec.json.Decoder(dict[str, _Rank])


def read_query(body: bytes) -> dict[int, str]:
    """Return engine ids by rank; empty when the answer is none."""
    try:
        ranks = _query.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return {int(rank): one.engine_id for rank, one in list(ranks.items())[:_RANKS_MAX] if rank.isdigit()}


def prefill_body(body: bytes, transfer: str) -> bytes:
    """Return the prefill leg's request: one token, and the blocks are to be pushed."""
    params = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer}
    return vllm_nixl.prefill_body(body, msgspec.Raw(msgspec.json.encode(params)))


def decode_body(body: bytes, transfer: str, engine_id: str, address: str) -> bytes:
    """Return the decode leg's request: the original bytes with the place where the blocks come from."""
    params = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "transfer_id": transfer,
        "remote_engine_id": engine_id,
        "remote_bootstrap_addr": address,
    }
    return vllm_nixl.decode_body(body, msgspec.json.encode(params))


def rank_header(rank: int) -> bytes:
    """Return the header line that chooses a rank."""
    return b"x-data-parallel-rank: %d\r\n" % rank
