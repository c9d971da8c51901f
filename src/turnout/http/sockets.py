"""How polled transports come about: by accepting and by connecting; plain TCP, to an address or to this machine."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast
from weakref import WeakKeyDictionary

from turnout.http.outbox import running_outbox
from turnout.http.polled import PolledTransport, Poller, Wire

_ACCEPTS: Final = 64
_ACCEPT_AGAIN_S: Final = 0.1
_NOT_NOW: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
# A name may have an address of a family that this machine does not speak.
_NOT_HERE: Final = frozenset((errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL))

Address = tuple[int, int, int, Any]
"""Family, kind and protocol of a socket, and the address in the family's form."""
WireT = TypeVar("WireT", bound=Wire)


class Acceptor:
    """A listening socket whose connections become polled transports."""

    __slots__ = ("_again", "_enough", "_factory", "_poller", "_sock")

    def __init__(
        self, poller: Poller, sock: socket.socket, factory: Callable[[], Wire], enough: Callable[[], bool]
    ) -> None:
        """Accept from a listening socket that does not block; after a pause only where there is `enough` for more."""
        self._poller = poller
        self._sock = sock
        self._factory = factory
        self._enough = enough
        self._again: asyncio.TimerHandle | None = None
        poller.accept(self, sock.fileno())

    @property
    def port(self) -> int:
        """The port that was bound."""
        return int(self._sock.getsockname()[1])

    def pause(self) -> None:
        """Leave connections in the backlog for a while."""
        if self._again is None:
            self._poller.accept_no_more(self._sock.fileno())
            self._again = self._poller.later(_ACCEPT_AGAIN_S, self._resume)

    def close(self) -> None:
        """Listen no more."""
        if self._again is not None:
            self._again.cancel()
        self._poller.accept_no_more(self._sock.fileno())
        self._sock.close()

    def ready(self) -> None:
        """Accept who waits."""
        for _ in range(_ACCEPTS):
            if self._again is not None:  # a protocol that was made asked for a pause
                return
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in _NOT_NOW:
                    self.pause()
                return
            sock.setblocking(False)
            PolledTransport(self._poller, sock, self._factory(), peer)

    def _resume(self) -> None:
        if self._enough():
            self._again = None
            self._poller.accept(self, self._sock.fileno())
        else:
            self._again = self._poller.later(_ACCEPT_AGAIN_S, self._resume)


async def listen(
    poller: Poller, factory: Callable[[], Wire], host: str, port: int, backlog: int, enough: Callable[[], bool]
) -> list[Acceptor]:
    """Listen on every address of a host that this machine has.

    Raises:
        OSError: one of them is taken, or there is none.

    """
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    acceptors: list[Acceptor] = []
    failure = OSError(f"{host} has no address")
    for family, kind, proto, _, address in dict.fromkeys(infos):
        try:
            sock = _bound((family, kind, proto, address), backlog)
        except OSError as error:
            failure = error
            if error.errno in _NOT_HERE:
                continue
            for acceptor in acceptors:
                acceptor.close()
            raise
        acceptors.append(Acceptor(poller, sock, factory, enough))
    if not acceptors:
        raise failure
    return acceptors


def _bound(address: Address, backlog: int) -> socket.socket:
    sock = socket.socket(*address[:3])
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address[3])
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


async def connect(
    poller: Poller | None,
    factory: Callable[[], WireT],
    host: str,
    port: int,
    tls: ssl.SSLContext | None = None,
    name: str | None = None,
) -> WireT:
    """Connect to the first address of a host that answers; by the loop's own transports without a poller or with TLS.

    Args:
        poller: `running_poller()`.
        factory: makes the protocol.
        host: name or address.
        port: its port.
        tls: how a certificate is checked; None without TLS.
        name: what the certificate has to be for.

    Raises:
        OSError: none answers, or the certificate is wrong.

    """
    if poller is None or tls is not None:
        return await _by_the_loop(factory, host, port, tls, name)
    loop = asyncio.get_running_loop()
    failure = OSError(f"{host} has no address")
    for family, kind, proto, address in await _addresses(loop, host, port):
        sock = socket.socket(family, kind, proto)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            wire = factory()
            PolledTransport(poller, sock, wire, address)
            return wire
    raise failure


async def _by_the_loop(
    factory: Callable[[], WireT], host: str, port: int, tls: ssl.SSLContext | None, name: str | None
) -> WireT:
    loop = asyncio.get_running_loop()
    made: Callable[[], Any] = factory
    _, wire = await loop.create_connection(made, host, port, ssl=tls, server_hostname=name)
    return cast("WireT", wire)


async def _addresses(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Address]:
    """Look up what is no address already."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, socket.SOCK_STREAM, 0, (host, port))]
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, kind, proto, address) for family, kind, proto, _, address in infos]


_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, Poller | None] = WeakKeyDictionary()


def running_poller() -> Poller | None:
    """Return the poller of the running event loop; None on systems without epoll and on loops without descriptors."""
    loop = asyncio.get_running_loop()
    if loop not in _pollers:
        try:
            _pollers[loop] = Poller(loop, running_outbox()) if hasattr(select, "epoll") else None
        except NotImplementedError:
            _pollers[loop] = None
    return _pollers[loop]
