"""Asks endpoints whether they are ready and what they serve, where asking adds knowledge (resilience O1, O4).

An endpoint that delivered a byte in the last seconds is not asked. One that could not be reached is asked soon and
then regularly; the answer brings it back. A model list that comes with the return tells contexts and lost models.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from turnout.core.errors import ErrorKind
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.options import Probe
from turnout.gateway.upstream import Reach
from turnout.http.client import EngineConnection
from turnout.http.response_head import ResponseHead

if TYPE_CHECKING:
    from turnout.gateway.service import Gateway

_RETURN_DELAYS_S = (0.2, 1.0, 3.0)
_QUIET_S = 5.0
_BODY_MAX_BYTES = 1_048_576
_OK = 200


class _Listed(msgspec.Struct, gc=False):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct, gc=False):
    data: list[_Listed] = []


class _Reply:
    """Collects one small response (`http.client.Sink`)."""

    def __init__(self) -> None:
        self.connection: EngineConnection | None = None
        self.done: asyncio.Future[tuple[int, bytes] | None] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._body: list[bytes] = []
        self._size = 0

    def on_head(self, head: ResponseHead) -> None:
        """Note the status."""
        self._status = head.status

    def on_body(self, payload: bytes, framed: bytes | None) -> None:  # noqa: ARG002 - a probe relays nothing
        """Keep a bounded body."""
        self._size += len(payload)
        if self._size <= _BODY_MAX_BYTES:
            self._body.append(payload)

    def on_end(self) -> None:
        """Answer the waiter."""
        self._resolve((self._status, b"".join(self._body)))

    def on_failure(self, kind: ErrorKind, detail: str) -> None:  # noqa: ARG002 - a failed probe is just that
        """Tell the waiter that there is no answer."""
        self._resolve(None)

    def _resolve(self, result: tuple[int, bytes] | None) -> None:
        if not self.done.done():
            self.done.set_result(result)


class Prober:
    """One task per endpoint that outlives its own exceptions."""

    def __init__(self, gateway: Gateway, options: Probe) -> None:
        self._gateway = gateway
        self._options = options
        self._wake: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False

    def start(self) -> None:
        """Begin probing every endpoint; providers are never probed."""
        for name, endpoint in self._gateway.fleet.endpoints.items():
            if not endpoint.provider:
                self._wake[name] = asyncio.Event()
                self._tasks.append(asyncio.get_running_loop().create_task(self._watch(name)))

    def failed(self, endpoint: EndpointState) -> None:
        """Hear that an endpoint could not be reached: ask soon."""
        wake = self._wake.get(endpoint.name)
        if wake is not None:
            wake.set()

    async def stop(self) -> None:
        """End all tasks and wait until they have."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, name: str) -> None:
        gateway, wake = self._gateway, self._wake[name]
        misses = 0
        listed = False
        while not self._stopped:
            endpoint = gateway.fleet.endpoints[name]
            away = endpoint.unreachable or endpoint.probe_failing
            if away or not listed or gateway.clock() - (endpoint.last_byte_at or 0.0) > _QUIET_S:
                ok = await self._ask(gateway.upstreams[name], "/health") is not None
                gateway.fleet.on_probe(endpoint, gateway.clock(), ok=ok)
                misses = 0 if ok else misses + 1
                if not ok and misses == 1 and not listed:
                    gateway.fleet.on_connect_failure(endpoint, gateway.clock())
                if ok and (away or not listed):
                    listed = await self._list(endpoint, gateway.upstreams[name])
            delay = self._options.interval_s * (0.8 + 0.4 * gateway.rng.random())
            if endpoint.unreachable and misses <= len(_RETURN_DELAYS_S):
                delay = min(delay, _RETURN_DELAYS_S[max(0, misses - 1)])
            wake.clear()
            try:
                async with asyncio.timeout(delay):  # wait_for of Python 3.11 can swallow a cancellation
                    await wake.wait()
            except TimeoutError:
                continue
            misses = 0
            await asyncio.sleep(_RETURN_DELAYS_S[0])

    async def _list(self, endpoint: EndpointState, upstream: Reach) -> bool:
        """Read contexts from the model list; an engine without one keeps its configuration."""
        answer = await self._ask(upstream, "/v1/models")
        if answer is None:
            return False
        try:
            models = msgspec.json.decode(answer[1], type=_Models).data
        except (msgspec.DecodeError, RecursionError):
            return True
        endpoint.listed()
        names = {endpoint.served_as.get(model, model) for model in endpoint.models}
        contexts = [listed.max_model_len for listed in models if listed.id in names and listed.max_model_len]
        if contexts:
            endpoint.context_max = min(contexts)
        return True

    async def _ask(self, upstream: Reach, path: str) -> tuple[int, bytes] | None:
        reply = _Reply()
        upstream.pool.request(upstream.head(path, "GET") + b"\r\n", reply)
        try:
            async with asyncio.timeout(self._options.timeout_s):
                answer = await reply.done
        except TimeoutError:
            answer = None
        finally:
            upstream.pool.cancel(reply)
        return answer if answer is not None and answer[0] == _OK else None
