"""What endpoints say of themselves once per incarnation, where pairs need it: role, Mooncake engine ids, addresses.

An endpoint with the role `auto` is nobody's candidate until it has answered; one that has no such answer serves whole
requests. Names of hosts are resolved when an endpoint comes, so that later an address in an answer can be compared.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable

import msgspec

from turnout.core import options
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet
from turnout.core.scheduling.pairing import Pairing, canonical
from turnout.engines import vllm_mooncake
from turnout.engines.sglang import Introduction, introduction
from turnout.observation.fetch import Fetcher

_LOOK_S = 0.5
_TIMEOUT_S = 5.0
_OK, _SERVER_ERROR = 200, 500


class Introductions:
    """Follows the fleet; asks each new incarnation what it must know of it, again and again until it knows."""

    def __init__(self, fleet: Fleet, *, clock: Callable[[], float]) -> None:
        self._fleet, self._clock = fleet, clock
        self._task: asyncio.Task[None] | None = None
        self._asked: dict[str, int] = {}
        """Incarnation by name of those who are known."""
        self._learnt: dict[str, options.Endpoint] = {}
        """Descriptions that we have made of a role `auto`."""

    def start(self) -> None:
        """Begin to ask."""
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            strangers = [e for e in list(self._fleet.endpoints.values()) if self._asked.get(e.name) != e.incarnation]
            for known, one in zip(
                await asyncio.gather(*map(self._meet, strangers), return_exceptions=True), strangers, strict=True
            ):
                if isinstance(known, Exception):
                    loop.call_exception_handler({"message": "an introduction met a bug", "exception": known})
                elif known is True:
                    self._asked[one.name] = one.incarnation
            await asyncio.sleep(_LOOK_S)

    async def _meet(self, endpoint: EndpointState) -> bool:
        """Return whether nothing is left to be asked of this incarnation."""
        described = self._fleet.declared(endpoint.name)
        pairing = self._fleet.pairing
        if described is None or not isinstance(pairing, Pairing):
            return True
        if described.role == "auto" or self._learnt.get(endpoint.name) is described:
            return await self._role(endpoint, described)
        if described.role == "both":
            return True
        await _resolve(pairing, described)
        facts = pairing.facts[endpoint.name]
        if facts.transport != vllm_mooncake.FLOW or described.role == "decode":
            return True
        host = f"[{facts.bootstrap_host}]" if ":" in facts.bootstrap_host else facts.bootstrap_host
        at = msgspec.structs.replace(described, url=f"http://{host}:{facts.bootstrap_port}", api_key="")
        answer = await _get(at, vllm_mooncake.QUERY_PATH)
        ranks = vllm_mooncake.read_query(answer[1]) if answer is not None and answer[0] == _OK else {}
        if ranks and not endpoint.gone:
            pairing.introduced[endpoint.name] = ranks
        return bool(ranks)

    async def _role(self, endpoint: EndpointState, described: options.Endpoint) -> bool:
        answer = await _get(described, "/server_info")
        if answer is None or answer[0] >= _SERVER_ERROR:
            return False
        told = introduction(answer[1]) if answer[0] == _OK else None
        wanted = msgspec.structs.replace(described, role="both") if told is None else _as_told(described, told)
        if wanted != described:
            successor = self._fleet.redeclared(endpoint, wanted, self._clock())
            if successor is not None:
                self._learnt[endpoint.name] = wanted
                self._asked[endpoint.name] = successor.incarnation
                pairing = self._fleet.pairing
                if isinstance(pairing, Pairing) and wanted.role != "both":
                    await _resolve(pairing, wanted)
        return True


def _as_told(described: options.Endpoint, told: Introduction) -> options.Endpoint:
    """Return the description with what the engine says of itself, where nobody has said otherwise."""
    return msgspec.structs.replace(
        described,
        role=told.role,
        kv_transport="bootstrap" if described.kv_transport == "auto" else described.kv_transport,
        bootstrap_port=told.bootstrap_port or described.bootstrap_port,
        kv_block_tokens=described.kv_block_tokens or told.block_tokens,
        kv_dtype=described.kv_dtype or told.dtype,
        kv_tp_size=described.kv_tp_size or told.tp_size,
    )


async def _get(endpoint: options.Endpoint, path: str) -> tuple[int, bytes] | None:
    fetcher = Fetcher(endpoint, _TIMEOUT_S)
    try:
        return await fetcher.get(path)
    finally:
        fetcher.close()


async def _resolve(pairing: Pairing, endpoint: options.Endpoint) -> None:
    """Remember the addresses of an endpoint's host names; a name that is not known yet is compared as it is."""
    for host in pairing.facts[endpoint.name].hosts:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            found: list[tuple[object, ...]] = []
            try:
                found = list(await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM))
            except OSError:
                continue
            pairing.addresses[host] = frozenset(canonical(str(entry[4][0])) for entry in found)  # type: ignore[index]  # what getaddrinfo gives
