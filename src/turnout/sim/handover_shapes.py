"""What hand-overs between engines are made of: the members of a request that name them, answers, the fetch itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from turnout.sim import wire
from turnout.sim.answers import Shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.sim.sequence import Emitted

KV_PATH = "/sim/kv"
_ANSWER_MAX = 65_536
_OK = b"HTTP/1.1 200"


class Params(msgspec.Struct):
    """`kv_transfer_params` of a request."""

    do_remote_decode: bool = False
    do_remote_prefill: bool = False
    remote_engine_id: str | None = None
    remote_host: str | None = None
    remote_port: int | None = None
    transfer_id: str | None = None
    remote_bootstrap_addr: str | None = None


class Legs(msgspec.Struct):
    """What makes a request one leg of two."""

    kv_transfer_params: Params | None = None
    bootstrap_host: str | None = None
    bootstrap_port: int | None = None
    bootstrap_room: int | None = None
    rid: str | None = None


class Fetch(msgspec.Struct):
    """Which blocks another engine wants, and how many tokens of them it lacks."""

    id: str
    lacks: int = 0


legs_decoder = msgspec.json.Decoder(Legs)
fetch_decoder = msgspec.json.Decoder(Fetch)


class Watched:
    """An answer that tells when its generation has ended."""

    def __init__(self, answer: Any, ended: Callable[[], None]) -> None:
        self._answer = answer
        self._ended = ended

    def emitted(self, event: Emitted) -> bool:
        """Pass the token on, then tell."""
        lives: bool = self._answer.emitted(event)
        if event.finish is not None:
            self._ended()
        return lives


class Collected:
    """An answer that only hands its tokens over."""

    def __init__(self, take: Callable[[Emitted], bool]) -> None:
        self.emitted = take


class OfferingShape:
    """A whole answer with `kv_transfer_params` in it."""

    done = b""
    malformed = b""

    def __init__(self, shape: Shape, params: dict[str, Any] | None) -> None:
        self._shape = shape
        self._params = params

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shape, name)

    def whole(self, texts: list[str], finish: str, stop_hit: str | None, usage_now: dict[str, Any]) -> bytes:
        """The complete answer."""
        body = msgspec.json.decode(self._shape.whole(texts, finish, stop_hit, usage_now))
        return wire.to_json({**body, "kv_transfer_params": self._params})


async def fetched(host: str, port: int, body: bytes) -> bool:
    """Fetch blocks from another engine; False when it cannot give them."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    try:
        writer.write(
            b"POST %b HTTP/1.1\r\nhost: kv\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (KV_PATH.encode(), len(body), body)
        )
        return (await reader.read(_ANSWER_MAX)).startswith(_OK)
    except OSError:
        return False
    finally:
        writer.close()
