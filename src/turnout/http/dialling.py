"""From an endpoint's name to a connection: looked up off the loop and remembered, with TLS that is checked.

An address book outlives its source: a name that cannot be looked up any more keeps its last good addresses for an hour
(resilience I5), is looked up again at least every half minute and after two failures in a row, and never has more than
sixteen. Endpoints that are given by an address, without TLS, need none of this.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable

from turnout.http.sockets import WireT, connect, running_poller

_LOOKUP_S = 5.0
_FRESH_S = 30.0
_AGAIN_S = 5.0
_STALE_MAX_S = 3600.0
_FAILURES_MAX = 2
_ADDRESSES_MAX = 16

Lookup = Callable[[str, int], Awaitable[list[str]]]


class Dialler:
    """The way to one endpoint.

    Args:
        host: name or address.
        port: its port.
        tls: how its certificate is checked; None without TLS.
        public_only: whether addresses of private networks are refused: a bought service has none, so a name that
            points there is an attack on whoever believes it.
        lookup: addresses of a name; raises OSError when there are none.

    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        public_only: bool = False,
        lookup: Lookup | None = None,
    ) -> None:
        self._host, self._port = host, port
        self._tls = tls
        self._public_only = public_only
        self._lookup = lookup or _from_system
        self._addresses: list[str] = []
        self._known_s = self._fresh_until_s = 0.0
        self._failures = 0
        self._next = 0
        self.stale_total = 0
        """Connections made to addresses whose name could not be looked up any more."""

    async def connect(self, factory: Callable[[], WireT]) -> WireT:
        """Connect to one of the addresses.

        Raises:
            OSError: none of them, or nobody behind them could prove to be the host.

        """
        loop = asyncio.get_running_loop()
        failure: OSError = OSError(f"{self._host} has no address")
        for address in await self._current(loop.time()):
            try:
                name = self._host if self._tls is not None else None
                connection = await connect(running_poller(), factory, address, self._port, self._tls, name)
            except OSError as error:
                failure = error
            else:
                self._failures = 0
                return connection
        self._failures += 1
        raise failure

    async def _current(self, now: float) -> list[str]:
        """The addresses, those tried least lately first."""
        if now >= self._fresh_until_s or self._failures >= _FAILURES_MAX:
            await self._refresh(now)
        at = self._next = (self._next + 1) % max(1, len(self._addresses))
        return self._addresses[at:] + self._addresses[:at]

    async def _refresh(self, now: float) -> None:
        try:
            async with asyncio.timeout(_LOOKUP_S):
                found = await self._lookup(self._host, self._port)
            found = [address for address in dict.fromkeys(found) if self._allowed(address)][:_ADDRESSES_MAX]
            if not found:
                raise OSError(f"{self._host} has no address that may be used")  # noqa: TRY301 - one way to go stale
        except (OSError, TimeoutError):
            self._fresh_until_s = now + _AGAIN_S
            self._failures = 0
            if not self._addresses or now - self._known_s > _STALE_MAX_S:
                self._addresses = []
                raise
            self.stale_total += 1
            return
        self._addresses = found
        self._known_s, self._fresh_until_s, self._failures = now, now + _FRESH_S, 0

    def _allowed(self, address: str) -> bool:
        return not self._public_only or ipaddress.ip_address(address.partition("%")[0]).is_global


def dialler(host: str, port: int, *, secure: bool, ca_file: str, public_only: bool) -> Dialler | None:
    """Return what it takes to dial an endpoint; None when its address and nothing else is known.

    An address that somebody wrote down is meant: `public_only` is about names. Raises OSError for a bad `ca_file`.
    """
    named = host != "localhost" and not _is_address(host)
    if not named and not secure:
        return None
    tls = ssl.create_default_context(cafile=ca_file or None) if secure else None
    return Dialler(host, port, tls=tls, public_only=public_only and named)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _from_system(host: str, port: int) -> list[str]:
    """Ask the system's resolver, on a thread."""
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in infos]
