"""vLLM's serial hand-over (NIXL pull): the prefill request, what its answer gives away, and the decode request.

The prefill engine computes the prompt and keeps its blocks on a lease; its `kv_transfer_params` are opaque and travel
to the decode engine byte for byte, but for the address in them, which the caller must know.
"""

from __future__ import annotations

import msgspec

FLOW = "nixl"
_MEMBER = "kv_transfer_params"
_ASK = msgspec.Raw(
    b'{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,'
    b'"remote_host":null,"remote_port":null}'
)
_ONE, _FALSE = msgspec.Raw(b"1"), msgspec.Raw(b"false")
_DROPPED = ("stream_options", "min_tokens")
_PORT_MAX = 65_535


class BadHandover(ValueError):
    """The prefill engine's answer is none."""


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    prompt_tokens_details: dict[str, msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")


class _Params(msgspec.Struct):
    remote_host: str | None = None
    remote_port: int | None = None
    do_remote_prefill: bool = False


class Handover(msgspec.Struct, frozen=True, gc=False):
    """What a prefill leg came to. `params` is empty when the engine keeps nothing (a prompt shorter than a block)."""

    params: bytes
    host: str
    port: int
    cached_tokens: int | None


_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_answer = msgspec.json.Decoder(_Answer)
_params = msgspec.json.Decoder(_Params)


def prefill_body(body: bytes, ask: msgspec.Raw = _ASK) -> bytes:
    """Return the prefill leg's request: one token, whole, and the blocks kept for a remote decode."""
    members = _members.decode(body)
    for name in _DROPPED:
        members.pop(name, None)
    members["stream"] = _FALSE
    members["max_tokens"] = _ONE
    if "messages" in members:
        members["max_completion_tokens"] = _ONE
    members[_MEMBER] = ask
    return msgspec.json.encode(members)


def read_answer(body: bytes) -> Handover:
    """Read the prefill leg's answer. Raises BadHandover when it is none."""
    try:
        answer = _answer.decode(body)
        finish = answer.choices[0].finish_reason if answer.choices else None
        raw = bytes(answer.kv_transfer_params)
        params = _params.decode(raw) if raw != b"null" else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadHandover(f"prefill answer: {error}") from error
    if finish not in ("length", "stop"):
        raise BadHandover(f"finish_reason = {finish!r}: expected length or stop")
    cached = _cached(answer.usage)
    if params is None:
        return Handover(b"", "", 0, cached)
    host, port = params.remote_host, params.remote_port
    if not params.do_remote_prefill or not host or port is None or not 0 < port <= _PORT_MAX:
        raise BadHandover(f"kv_transfer_params: expected remote_host and remote_port, got {str(host)[:64]!r}, {port!r}")
    return Handover(raw, host, port, cached)


def decode_body(body: bytes, params: bytes) -> bytes:
    """Return the decode leg's request: the original bytes with the hand-over in them, or as they are without one."""
    if not params:
        return body
    end = body.rindex(b"}")
    separator = b"" if body[:end].rstrip().endswith(b"{") else b","
    return b"".join((body[:end], separator, b'"', _MEMBER.encode(), b'":', params, body[end:]))


def cached_tokens(answer: bytes) -> int | None:
    """Return what the prefill engine found in its cache; None when it does not say."""
    try:
        return _cached(_answer.decode(answer).usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _cached(usage: _Usage | None) -> int | None:
    details = usage.prompt_tokens_details if usage is not None else None
    if details is None:
        return None
    raw = bytes(details.get("cached_tokens", msgspec.Raw(b"null")))
    return int(raw) if raw.isdigit() else None
