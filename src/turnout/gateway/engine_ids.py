"""The name of a request towards an engine: the same on all attempts and legs, in a form that the engine takes."""

from __future__ import annotations

import uuid
from typing import Final

from turnout.core.fleet.endpoint import EndpointState

_NAMES: Final = uuid.uuid5(uuid.NAMESPACE_URL, "urn:turnout:x-request-id")


def of(endpoint: EndpointState, request_id: bytes) -> bytes:
    """Return the request's id; where only UUIDs are taken one that is made of it, unless it is a UUID itself."""
    if not endpoint.uuid_ids:
        return request_id
    text = request_id.decode("ascii")
    try:
        uuid.UUID(text)
    except ValueError:
        return str(uuid.uuid5(_NAMES, text)).encode()
    return request_id
