"""Changing a body without re-encoding it: only the spans that must differ are replaced (request-path U1, U3)."""

from __future__ import annotations

from typing import Final

import msgspec

from turnout.core.request import Request
from turnout.dialects.strict_json import spans

_USAGE_OPTIONS: Final = b'"stream_options":{"include_usage":true}'


def upstream_body(request: Request, engine_model: str, *, ask_usage: bool) -> bytes:
    """Return the bytes for one endpoint; the received ones, when nothing must change.

    Args:
        request: the request; every attempt starts from its original bytes.
        engine_model: the endpoint's own name of the model.
        ask_usage: whether to ask a stream for its usage.

    """
    add_usage = ask_usage and request.stream and not request.include_usage and request.path != "/v1/embeddings"
    rename = engine_model != request.model or request.model_defaulted
    body = request.body
    if not (rename or request.has_controls or (add_usage and request.has_stream_options)):
        return _insert_last(body, _USAGE_OPTIONS) if add_usage else body
    pieces: list[bytes] = []
    at = 0
    dropped = False
    has_model = False
    for key, start, end in spans(body):
        if key == "model":
            has_model = True
            value = msgspec.json.encode(engine_model) if rename else body[start:end]
        elif key == "stream_options" and add_usage:
            value = _with_usage(body[start:end])
        elif key == "turnout":
            dropped = True
            continue
        else:
            continue
        pieces += (body[at:start], value)
        at = end
    pieces.append(body[at:])
    spliced = b"".join(pieces)
    if rename and not has_model:
        spliced = _insert_last(spliced, b'"model":' + msgspec.json.encode(engine_model))
    if add_usage and not request.has_stream_options:
        spliced = _insert_last(spliced, _USAGE_OPTIONS)
    return _without_member(spliced, "turnout") if dropped else spliced


def with_rank(body: bytes, rank: int) -> bytes:
    """Return the body for one data-parallel rank of an SGLang engine; clients cannot name one (J9)."""
    return _insert_last(body, b'"routed_dp_rank":%d' % rank)


def _insert_last(body: bytes, member: bytes) -> bytes:
    end = body.rindex(b"}")
    separator = b"" if body[:end].rstrip().endswith(b"{") else b","
    return b"".join((body[:end], separator, member, body[end:]))


def _with_usage(value: bytes) -> bytes:
    if value == b"null":
        return b'{"include_usage":true}'
    for key, start, end in spans(value):
        if key == "include_usage":
            return value[:start] + b"true" + value[end:]
    return _insert_last(value, b'"include_usage":true')


def _without_member(body: bytes, name: str) -> bytes:
    """Remove a top-level member, with the comma that belongs to it."""
    members = spans(body)
    index = next(i for i, (key, _, _) in enumerate(members) if key == name)
    end = members[index][2]
    if index > 0:
        return body[: members[index - 1][2]] + body[end:]
    if len(members) == 1:
        return body[: body.index(b"{") + 1] + body[end:]
    comma = body.index(b",", end)
    return body[: body.index(b"{") + 1] + body[comma + 1 :]
