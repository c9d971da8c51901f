"""Where the two legs of a concurrent hand-over meet: SGLang's bootstrap room, or a transfer of vLLM's Mooncake.

A meeting belongs to one attempt. It chooses the data-parallel ranks where the engines leave that to the router, words
both requests, and is left exactly once, whatever ends the attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.engines import sglang_bootstrap, vllm_mooncake, vllm_nixl

if TYPE_CHECKING:
    from turnout.core.kit.rng import Rng
    from turnout.core.scheduling.legs import Legs
    from turnout.core.scheduling.pairing import Pairing

_TRANSFER_BITS = 128


class RoomMeeting:
    """SGLang: the same body to both, with the room that they meet in."""

    __slots__ = ("_address", "_pairing", "_ranks", "_room")

    def __init__(self, pairing: Pairing, legs: Legs, now: float, rng: Rng) -> None:
        self._pairing = pairing
        prefill, decode = legs.prefill.name, legs.decode.name
        facts = pairing.facts[prefill]
        ranks = [(name, pairing.facts[name].ranks) for name in (prefill, decode)]
        self._ranks = [(name, pairing.ranks.take(name, count)) if count else None for name, count in ranks]
        first = self._ranks[0]
        self._room = pairing.rooms.draw(now, rng, facts.ranks, 0 if first is None else first[1])
        self._address = (facts.bootstrap_host, facts.bootstrap_port, self._room)

    def prefill(self, body: bytes) -> tuple[bytes, bytes]:
        """Return further header lines and the body for the prefill endpoint."""
        return b"", sglang_bootstrap.leg_body(body, *self._address, self._rank(0))

    def decode(self, body: bytes) -> tuple[bytes, bytes]:
        """Return further header lines and the body for the decode endpoint."""
        return b"", sglang_bootstrap.leg_body(body, *self._address, self._rank(1), self._rank(0))

    def cached(self, answer: bytes) -> int | None:
        """Read the cached tokens of the prefill endpoint's answer."""
        return sglang_bootstrap.cached_tokens(answer)

    @property
    def abort(self) -> bytes | None:
        """The body by which both engines are told to abort it."""
        return sglang_bootstrap.abort_body(self._room)

    def leave(self, now: float) -> None:
        """It is over; any number of times."""
        if self._room < 0:
            return
        self._pairing.rooms.leave(self._room, now)
        for taken in self._ranks:
            if taken is not None:
                self._pairing.ranks.give(*taken)
        self._room = -1

    def _rank(self, place: int) -> int | None:
        taken = self._ranks[place]
        return None if taken is None else taken[1]


class TransferMeeting:
    """Mooncake: one rank of the prefill endpoint pushes a transfer that the decode endpoint waits for."""

    __slots__ = ("_address", "_engine_id", "_left", "_name", "_pairing", "_rank", "_transfer")

    def __init__(self, pairing: Pairing, legs: Legs, rng: Rng) -> None:
        self._pairing = pairing
        self._name = legs.prefill.name
        facts = pairing.facts[self._name]
        introduced = sorted(pairing.introduced[self._name].items())
        place = pairing.ranks.take(self._name, len(introduced))
        self._rank, self._engine_id = introduced[place]
        self._left = place
        host = f"[{facts.bootstrap_host}]" if ":" in facts.bootstrap_host else facts.bootstrap_host
        self._address = f"http://{host}:{facts.bootstrap_port}"
        self._transfer = f"xfer-{rng.randrange(1 << _TRANSFER_BITS):032x}"

    def prefill(self, body: bytes) -> tuple[bytes, bytes]:
        """Return further header lines and the body for the prefill endpoint."""
        return vllm_mooncake.rank_header(self._rank), vllm_mooncake.prefill_body(body, self._transfer)

    def decode(self, body: bytes) -> tuple[bytes, bytes]:
        """Return further header lines and the body for the decode endpoint."""
        return b"", vllm_mooncake.decode_body(body, self._transfer, self._engine_id, self._address)

    def cached(self, answer: bytes) -> int | None:
        """Read the cached tokens of the prefill endpoint's answer."""
        return vllm_nixl.cached_tokens(answer)

    @property
    def abort(self) -> bytes | None:
        """Closing the connections is all there is."""
        return None

    def leave(self, now: float) -> None:  # noqa: ARG002 - a transfer's name is never drawn again
        """It is over; any number of times."""
        if self._left >= 0:
            self._pairing.ranks.give(self._name, self._left)
            self._left = -1


Meeting = RoomMeeting | TransferMeeting


def meet(pairing: Pairing, legs: Legs, now: float, rng: Rng) -> Meeting:
    """Open the meeting of one attempt. Raises ValueError when too many rooms are open."""
    if legs.transport == vllm_mooncake.FLOW:
        return TransferMeeting(pairing, legs, rng)
    return RoomMeeting(pairing, legs, now, rng)
