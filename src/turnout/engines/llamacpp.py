"""What llama.cpp's server says of itself on `/props`: how many requests run at once, and how long each may be."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

PROPS_PATH = "/props"
FAMILY = "llamacpp"
"""As it signs its model list."""
PYTHON_OWNER = "me"
"""As llama-cpp-python's server signs it. It answers 400 with an empty body to an `x-request-id` that is no UUID."""

_Positive = Annotated[int, Meta(gt=0, le=2**31)]


class _Settings(msgspec.Struct, frozen=True, gc=False):
    n_ctx: _Positive | None = None


class Props(msgspec.Struct, frozen=True, gc=False):
    """Slots, and the context of one of them; None is unknown."""

    total_slots: _Positive | None = None
    default_generation_settings: _Settings = _Settings()

    @property
    def context_max(self) -> int | None:
        """Tokens that a request may have, prompt and answer."""
        return self.default_generation_settings.n_ctx


_read = msgspec.json.Decoder(Props).decode


def read_props(body: bytes) -> Props:
    """Read the page; what is not there, or is no sensible number, is unknown."""
    try:
        return _read(body)
    except (msgspec.DecodeError, RecursionError):
        return Props()
