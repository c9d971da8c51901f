"""SGLang's concurrent hand-over: the same body to both engines, which find each other in a bootstrap room.

The room is ours, drawn at random; `rid` follows from it, so that an abort can name the request on both engines.
"""

from __future__ import annotations

import msgspec

FLOW = "bootstrap"
ABORT_PATH = "/abort_request"
_RANK, _PREFILL_RANK = "routed_dp_rank", "disagg_prefill_dp_rank"
_OURS = ("bootstrap_host", "bootstrap_port", "bootstrap_room", "rid", _RANK, _PREFILL_RANK)

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


_answer = msgspec.json.Decoder(_Answer)


def leg_body(
    body: bytes, host: str, port: int, room: int, rank: int | None = None, prefill_rank: int | None = None
) -> bytes:
    """Return the request of either leg; a client's own `rid` is overwritten.

    `rank`: the data-parallel rank that is to serve it; `prefill_rank`, for the decode leg: the one it fetches from.
    """
    members = _members.decode(body)
    for name in _OURS:
        members.pop(name, None)
    shown = f"[{host}]" if ":" in host else host
    members["bootstrap_host"] = msgspec.Raw(msgspec.json.encode(shown))
    members["bootstrap_port"] = msgspec.Raw(b"%d" % port)
    members["bootstrap_room"] = msgspec.Raw(b"%d" % room)
    members["rid"] = msgspec.Raw(msgspec.json.encode(rid_of(room)))
    for name, value in ((_RANK, rank), (_PREFILL_RANK, prefill_rank)):
        if value is not None:
            members[name] = msgspec.Raw(b"%d" % value)
    return msgspec.json.encode(members)


def rid_of(room: int) -> str:
    """Return the request id that both engines know."""
    return f"t-{room}"


def abort_body(room: int) -> bytes:
    """Return the body of an abort request: one request, never all."""
    return msgspec.json.encode({"rid": rid_of(room)})


def cached_tokens(answer: bytes) -> int | None:
    """Return what the prefill engine found in its cache, of a whole answer or a stream; None when it does not say."""
    if answer.startswith(b"data:"):
        events = [line[5:] for line in answer.split(b"\n") if line.startswith(b"data:") and b'"usage":{' in line]
        answer = events[-1] if events else b"{}"
    try:
        usage = _answer.decode(answer).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    details = usage.prompt_tokens_details if usage is not None else None
    return details.cached_tokens if details is not None else None
