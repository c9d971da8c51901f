"""The admin listener: bind at once, build the application aside, serve in the running loop, stop in bounded time.

uvicorn and starlette take 200 ms to import. The socket listens before that, and the import runs on a thread that ends
with it, so neither the start nor the requests on the public listener wait; early connections queue in the backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import uvicorn

BACKLOG = 64
CONCURRENCY_MAX = 64
STOP_S = 2


class AdminListener:
    """One admin application on one socket.

    `app_factory` is called on a worker thread: it may import and build, it must not touch the loop. `protected` says
    that the application asks for a token; without one only loopback may be bound (hardening U11).
    """

    def __init__(
        self,
        app_factory: Callable[[], Any],
        host: str,
        port: int,
        *,
        protected: bool = False,
        report: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        self._app_factory = app_factory
        self._host = host
        self._port = port
        self._protected = protected
        self._report = report
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Bind, listen and return the port; serving begins in the background.

        Raises ValueError when the host is not loopback and nothing protects it, OSError when it cannot be bound.
        """
        if not self._protected and not is_loopback(self._host):
            raise ValueError(f"server.admin_listen: {self._host!r} is not loopback; a token is needed to listen there")
        self._socket = _bound(self._host, self._port)
        port: int = self._socket.getsockname()[1]
        self._task = asyncio.get_running_loop().create_task(self._serve(self._socket))
        return port

    async def stop(self) -> None:
        """End open responses within `STOP_S` and close the socket. May be called twice, or without `start`."""
        task = self._task  # not forgotten: a second caller must not close the socket under a server that still ends
        if task is not None and not task.done():
            if self._server is not None and self._server.started:
                self._server.should_exit = True
            else:
                task.cancel()
            done, _ = await asyncio.wait({task}, timeout=STOP_S + 1)
            if not done:
                task.cancel()
                await asyncio.wait({task}, timeout=1)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _serve(self, listening: socket.socket) -> None:
        try:
            server = self._server = await _aside(lambda: _server(self._app_factory()))
            await server.serve(sockets=[listening])
        except Exception as exc:  # noqa: BLE001 - measurement fails open: the router serves on without its admin pages
            if self._report is not None:
                self._report("admin listener", exc)


def is_loopback(host: str) -> bool:
    """Whether this address can only be reached from this machine."""
    bare = host.strip("[]")
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def _bound(host: str, port: int) -> socket.socket:
    bare = host.strip("[]")
    family, kind, proto, _, address = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _server(app: Any) -> uvicorn.Server:
    """A uvicorn server that leaves signals, logging and the process alone."""
    import uvicorn

    class Quiet(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="off",
        ws="none",
        http="httptools",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONCURRENCY_MAX,
        backlog=BACKLOG,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=STOP_S,
    )
    config.load()
    return Quiet(config)


async def _aside(make: Callable[[], uvicorn.Server]) -> uvicorn.Server:
    """The result of `make`, called on a thread of its own that ends with it (no executor stays behind)."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[uvicorn.Server] = loop.create_future()

    def settle(server: uvicorn.Server | None, failure: Exception | None) -> None:
        if made.done():
            return
        if server is not None:
            made.set_result(server)
        elif failure is not None:
            made.set_exception(failure)

    def work() -> None:
        server, failure = None, None
        try:
            server = make()
        except Exception as exc:  # noqa: BLE001 - handed to the loop, which reports it
            failure = exc
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, server, failure)

    threading.Thread(target=work, name="turnout-admin-start", daemon=True).start()
    return await made
