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
from turnout.core.fleet.health import counts_as_failure
from turnout.core.options import Probe
from turnout.engines import llamacpp
from turnout.gateway.upstream import Reach
from turnout.http.client import EngineConnection
from turnout.http.response_head import ResponseHead

if TYPE_CHECKING:
    from turnout.gateway.service import Gateway

_RETURN_DELAYS_S = (0.2, 1.0, 3.0)
_BODY_MAX_BYTES = 1_048_576
_OK = 200
_NOT_FOUND = 404
# Others take any name, or list a file: what they answer is their word on it, not what they list.
_KNOW_THEIR_MODELS = ("vllm", "sglang")


class _Listed(msgspec.Struct, gc=False):
    id: str
    max_model_len: int | None = None
    owned_by: object = None


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
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ended: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._timed_out = self._missing = False
        """Whether the question that ended last got no answer in time; read before the loop does anything else."""

    def start(self) -> None:
        """Begin probing every endpoint; providers are never probed."""
        for name in self._gateway.fleet.endpoints:
            self.watch(name)

    def watch(self, name: str) -> None:
        """Begin probing one endpoint, from the start if it was probed before."""
        self.forget(name)
        endpoint = self._gateway.fleet.endpoints.get(name)
        if endpoint is not None and not endpoint.provider and not self._stopped:
            self._wake[name] = asyncio.Event()
            self._tasks[name] = asyncio.get_running_loop().create_task(self._guard(name))

    def forget(self, name: str) -> None:
        """Stop probing one endpoint."""
        self._wake.pop(name, None)
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            self._ended.add(task)
            task.add_done_callback(self._ended.discard)

    def see_off(self, endpoint: EndpointState, upstream: Reach) -> None:
        """Ask an endpoint that is being removed, on its own upstream, until nobody waits for it any more (I3)."""
        if not endpoint.provider and not self._stopped:
            task = asyncio.get_running_loop().create_task(self._see_off(endpoint, upstream))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def failed(self, endpoint: EndpointState) -> None:
        """Hear that an endpoint could not be reached: ask soon."""
        wake = self._wake.get(endpoint.name)
        if wake is not None:
            wake.set()

    async def stop(self) -> None:
        """End all tasks and wait until they have."""
        self._stopped = True
        for name in list(self._tasks):
            self.forget(name)
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._ended, *self._leaving, return_exceptions=True)

    async def _guard(self, name: str) -> None:
        """Watch, and go on after an exception: a bug in one probe must not blind the router (O6)."""
        while not self._stopped:
            try:
                await self._watch(name)
            except Exception as error:  # noqa: BLE001 - told, and tried again
                report = {"message": "a probe met a bug", "exception": error}
                asyncio.get_running_loop().call_exception_handler(report)
                await asyncio.sleep(self._options.interval_s)

    async def _watch(self, name: str) -> None:
        gateway, wake = self._gateway, self._wake[name]
        misses = 0
        listed = False
        while not self._stopped:
            endpoint = gateway.fleet.endpoints[name]
            now = gateway.clock()
            away = endpoint.unreachable or endpoint.probe_failing
            if away or not listed or not gateway.recovery.health.progress(endpoint, now):
                ok = await self._ready(endpoint, gateway.upstreams[name])
                misses = 0 if ok else misses + 1
                if not ok and misses == 1 and not listed:
                    gateway.fleet.on_connect_failure(endpoint, gateway.clock())
                if ok and (away or not listed):
                    listed = await self._list(endpoint, gateway.upstreams[name])
            delay = self._pause_s()
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

    async def _see_off(self, endpoint: EndpointState, upstream: Reach) -> None:
        while endpoint.in_flight and not self._stopped:
            await asyncio.sleep(self._pause_s())
            if endpoint.in_flight:
                await self._ready(endpoint, upstream)

    async def _ready(self, endpoint: EndpointState, upstream: Reach) -> bool:
        """Ask whether it is ready, and let the answer count."""
        gateway = self._gateway
        ok = await self._ask(upstream, "/health") is not None
        if self._missing:  # llama-cpp-python has no such page
            ok = await self._ask(upstream, "/v1/models") is not None
        now = gateway.clock()
        progress = gateway.recovery.health.progress(endpoint, now)
        if ok or counts_as_failure(ok=ok, timed_out=self._timed_out, progress=progress):
            gateway.fleet.on_probe(endpoint, now, ok=ok)
        return ok

    def _pause_s(self) -> float:
        return self._options.interval_s * (0.8 + 0.4 * self._gateway.rng.random())

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
        if endpoint.family in _KNOW_THEIR_MODELS and models:
            listed_ids = {listed.id for listed in models}
            for model in endpoint.models:
                if endpoint.served_as.get(model, model) not in listed_ids:  # F48: it serves something else
                    endpoint.lose(model)
        contexts = [listed.max_model_len for listed in models if listed.id in names and listed.max_model_len]
        if contexts:
            endpoint.context_max = min(contexts)
        owners = [listed.owned_by for listed in models]
        if llamacpp.PYTHON_OWNER in owners:
            endpoint.uuid_ids = True
        if llamacpp.FAMILY in (endpoint.family, *owners):
            await self._properties(endpoint, upstream)
        return True

    async def _properties(self, endpoint: EndpointState, upstream: Reach) -> None:
        """Read slots and context of an engine that tells them on a page of their own."""
        answer = await self._ask(upstream, llamacpp.PROPS_PATH)
        if answer is None or endpoint.gone:
            return
        told = llamacpp.read_props(answer[1])
        if told.context_max is not None:
            endpoint.context_max = told.context_max
        if told.total_slots is not None:
            endpoint.max_running = told.total_slots
            self._gateway.recovery.reported(endpoint)

    async def _ask(self, upstream: Reach, path: str) -> tuple[int, bytes] | None:
        reply = _Reply()
        upstream.pool.request(upstream.head(path, "GET") + b"\r\n", reply)
        try:
            async with asyncio.timeout(self._options.timeout_s):
                answer, self._timed_out = await reply.done, False
        except TimeoutError:
            answer, self._timed_out = None, True
        finally:
            upstream.pool.cancel(reply)
        self._missing = answer is not None and answer[0] == _NOT_FOUND
        return answer if answer is not None and answer[0] == _OK else None
