"""Both roles of both hand-overs: blocks pinned on a lease, rendezvous by room, transfers that take their time.

The prefill side offers; the decode side fetches over HTTP (`POST /sim/kv` at the address it was given, the engine's own
listener), and its generation begins when the blocks are there. Real engines use a side channel of their own for this.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from turnout.sim import wire
from turnout.sim.answers import Line, Shape, StreamAnswer, WholeAnswer
from turnout.sim.handover_shapes import (
    Collected,
    Legs,
    OfferingShape,
    Params,
    Watched,
    fetch_decoder,
    fetched,
    legs_decoder,
)
from turnout.sim.options import LOAD_TOPIC
from turnout.sim.requests import Generate, RefusalError, decode

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.sim.faults import Fault, FaultPlan
    from turnout.sim.http import Connection, HttpRequest
    from turnout.sim.options import EngineOptions
    from turnout.sim.pump import Pump
    from turnout.sim.sequence import Emitted

    Draw = Callable[[], Fault | None]

OFFERS_MAX = 4096
MEMBERS = (b'"kv_transfer_params"', b'"bootstrap_room"')
"""A body with one of these is one leg of two."""
_MADE_BY_ROUTERS = ("xfer-",)
"""Names of offers that a decode side may ask for before they are made; bootstrap rooms are numbers."""


def server_info(options: EngineOptions, port: int, kv_events: str) -> dict[str, Any]:
    """Return the part of SGLang's page that tells the role of an engine, and where it publishes."""
    told = {"kv_events": _descriptor(options, kv_events)} if kv_events.startswith("tcp://") else {}
    return told | {
        "disaggregation_mode": "null" if options.role == "both" else options.role,
        "disaggregation_bootstrap_port": port,
        "tp_size": 1,
        "page_size": options.block_tokens,
        "kv_cache_dtype": "auto",
    }


def _descriptor(options: EngineOptions, kv_events: str) -> dict[str, Any]:
    at = urlsplit(kv_events)
    loads = urlsplit(options.kv_load).port if options.kv_load else None
    return {
        "publisher": "zmq",
        "endpoint_host": at.hostname,
        "endpoint_port_base": at.port,
        "topic": options.kv_topic,
        "block_size": options.block_tokens,
        "dp_size": options.dp_size,
    } | ({"load_endpoint_port_base": loads, "load_topic": LOAD_TOPIC} if loads else {})


def _no_fault() -> Fault | None:
    return None


def _address(params: Params) -> tuple[str, int, str]:
    """Where the blocks are, and by which name: NIXL names the engine, Mooncake the transfer."""
    if params.transfer_id is None:
        return params.remote_host or "", params.remote_port or 0, params.remote_engine_id or ""
    url = urlsplit(params.remote_bootstrap_addr or "")
    return url.hostname or "", url.port or 0, params.transfer_id


class Offer:
    """Blocks of one prompt, waiting for the engine that fetches them."""

    __slots__ = ("fetching", "number", "ready", "release", "timer", "waiting")

    def __init__(self) -> None:
        self.number = -1
        self.ready = False
        self.fetching = False
        self.release: Callable[[bool], None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.waiting: tuple[Connection, int] | None = None


class Handovers:
    """The hand-overs of one incarnation of an engine."""

    def __init__(self, options: EngineOptions, pump: Pump, faults: FaultPlan, port: Callable[[], int]) -> None:
        self._options = options
        self._pump = pump
        self._faults = faults
        self._port = port
        self._offers: dict[str, Offer] = {}
        self._rids: dict[str, Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._serial = 0
        self.counts = {"offered": 0, "fetched": 0, "expired": 0, "failed": 0, "recomputed": 0}

    def metrics(self) -> bytes:
        """The lines that vLLM's NIXL connector adds to the metrics page."""
        failed = self.counts["failed"] + self.counts["recomputed"]
        name = b"vllm:nixl_num_failed_transfers"
        return b'# TYPE %b counter\n%b_total{engine="0"} %d.0\n' % (name, name, failed)

    @property
    def open(self) -> int:
        """Offers that nobody has fetched yet."""
        return len(self._offers)

    def stop(self) -> None:
        """Forget everything, as a process that ends does."""
        for task in self._tasks:
            task.cancel()
        for offer in self._offers.values():
            if offer.timer is not None:
                offer.timer.cancel()
        self._offers.clear()

    def take(
        self, connection: Connection, request: HttpRequest, asked: Generate, shape: Shape, fault: Draw = _no_fault
    ) -> bool:
        """Serve one leg of two; False when the request is whole after all. Raises RefusalError.

        `fault` draws what befalls the answer as it is written.
        """
        legs = decode(legs_decoder, request.body)
        if not self.serve(connection, legs, asked, shape, fault):
            return False
        if legs.bootstrap_room is not None and legs.rid is not None:  # only now: one refused must not take a name
            self.named(legs.rid, connection)
        return True

    def serve(self, connection: Line, legs: Legs, asked: Generate, shape: Shape, fault: Draw) -> bool:
        """The same for legs that have been read, on a line of their own."""
        params = legs.kv_transfer_params
        if legs.bootstrap_room is not None:
            if self._options.role == "decode":
                address = (legs.bootstrap_host or "", legs.bootstrap_port or 0, str(legs.bootstrap_room))
                self._fetch_first(connection, asked, shape, address, fault)
            else:
                self._offer_room(connection, asked, shape, str(legs.bootstrap_room), fault)
            return True
        if params is None:
            return False
        if params.do_remote_decode and params.transfer_id is not None:
            self._offer_push(connection, asked, shape, params.transfer_id, fault)
        elif params.do_remote_decode:
            self._offer(connection, asked, shape, fault)
        elif params.do_remote_prefill:
            self._fetch_first(connection, asked, shape, _address(params), fault)
        return params.do_remote_decode or params.do_remote_prefill

    # -- the prefill side ---------------------------------------------------------------------------------------------

    def _offer(self, connection: Line, asked: Generate, shape: Shape, fault: Draw) -> None:
        """NIXL: answer with what the decode side needs, and keep the blocks."""
        self._serial += 1
        name = f"{self._options.name}-{self._serial}"
        short = asked.prompt_tokens < self._options.block_tokens
        empty = short or self._faults.draw("no_kv_params") is not None
        params = None if empty else self._params(name, asked.prompt_tokens)
        offering = OfferingShape(shape, params)
        answer = WholeAnswer(connection, asked, offering, fault(), cached_tokens=self._options.cached_tokens)
        work = msgspec.structs.replace(asked.work, max_tokens=1, min_tokens=0, pinned=not empty)
        if empty:
            self._run(connection, work, answer)
            return
        self._begin(connection, work, answer, name, self._new_offer(name))

    def _offer_push(self, connection: Line, asked: Generate, shape: Shape, name: str, fault: Draw) -> None:
        """Mooncake: answer as soon as the prompt is computed; the blocks wait for whoever knows the transfer."""
        known = self._offers.get(name)
        if known is not None and known.number >= 0:
            raise RefusalError(400, f"transfer_id {name} is in use")
        answer = WholeAnswer(connection, asked, shape, fault(), cached_tokens=self._options.cached_tokens)
        work = msgspec.structs.replace(asked.work, max_tokens=1, min_tokens=0, pinned=True)
        self._begin(connection, work, answer, name, known or self._new_offer(name))

    def _begin(self, connection: Line, work: Any, answer: Any, name: str, offer: Offer) -> None:
        """Compute a prompt; a client that leaves before the answer takes the offer with it."""
        offer.number = number = self._run(connection, work, Watched(answer, functools.partial(self._ready, name)))

        def left() -> None:
            self._pump.abort(number)
            if not offer.ready:
                self._drop(name, fetched=False)

        connection.gone = left

    def _params(self, name: str, tokens: int) -> dict[str, Any]:
        blocks = -(-tokens // self._options.block_tokens)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": name,
            "remote_block_ids": list(range(min(blocks, 16))),
            "remote_host": self._options.kv_host or self._options.host,
            "remote_port": self._port(),
            "tp_size": 1,
        }

    def _offer_room(self, connection: Line, asked: Generate, shape: Shape, room: str, fault: Draw) -> None:
        """Bootstrap: the answer waits until the decode side has fetched."""
        known = self._offers.get(room)
        if (known is not None and known.number >= 0) or self._faults.draw("room_conflict") is not None:
            raise RefusalError(400, f"bootstrap_room {room} is in use")
        offer = known or self._new_offer(room)
        work = msgspec.structs.replace(asked.work, max_tokens=1, min_tokens=0, pinned=True)
        held: list[Emitted] = []

        def finish(fetched: bool) -> None:  # noqa: FBT001 - a callback
            if not connection.busy:
                return
            if not fetched:
                connection.reply(500, wire.error_body(500, "KV transfer failed", "InternalServerError"))
                return
            cached = self._options.cached_tokens
            make = StreamAnswer if asked.stream else WholeAnswer
            make(connection, asked, shape, fault(), cached_tokens=cached).emitted(held[0])

        def emitted(event: Emitted) -> bool:
            held.append(event)
            return True

        offer.release = finish
        number = self._run(connection, work, Watched(Collected(emitted), functools.partial(self._ready, room)))
        offer.number = number

        def left() -> None:
            self._pump.abort(number)
            self._drop(room, fetched=False)

        connection.gone = left

    def _new_offer(self, name: str) -> Offer:
        if len(self._offers) >= OFFERS_MAX:
            raise RefusalError(503, f"offers = {len(self._offers)}: expected fewer than {OFFERS_MAX}")
        offer = self._offers[name] = Offer()
        self.counts["offered"] += 1
        return offer

    def _ready(self, name: str) -> None:
        """The prompt is computed: the lease begins."""
        offer = self._offers.get(name)
        if offer is None:
            return
        offer.ready = True
        loop = asyncio.get_running_loop()
        expired = self._faults.draw("lease_expire") is not None
        offer.timer = loop.call_later(0.0 if expired else self._options.kv_lease_s, self._expired, name)
        if offer.waiting is not None and not expired:
            connection, lacks = offer.waiting
            self._transfer(connection, name, offer, lacks)

    def _expired(self, name: str) -> None:
        offer = self._offers.get(name)
        if offer is None:
            return
        if offer.fetching:
            offer.timer = None  # who fetches holds the lease; see `_unread`
            return
        self.counts["expired"] += 1
        self._drop(name, fetched=False)

    def _unread(self, name: str) -> None:
        """Who fetched has left in the middle of it: the blocks stay pinned for what is left of the lease."""
        offer = self._offers.get(name)
        if offer is None or not offer.fetching:
            return
        offer.fetching, offer.waiting = False, None
        if offer.timer is None:
            self._expired(name)

    def _drop(self, name: str, *, fetched: bool) -> None:
        offer = self._offers.pop(name, None)
        if offer is None:
            return
        if offer.timer is not None:
            offer.timer.cancel()
        self._pump.model.unpin(offer.number)
        if offer.waiting is not None and not fetched and offer.waiting[0].busy:
            offer.waiting[0].reply(404, wire.to_json({"error": "no such blocks"}))
        if offer.release is not None:
            offer.release(fetched)

    def fetch(self, connection: Connection, request: HttpRequest) -> None:
        """`POST /sim/kv`: another engine wants the blocks of one prompt."""
        asked = decode(fetch_decoder, request.body)
        offer = self._offers.get(asked.id)
        if offer is None and (asked.id.isdigit() or asked.id.startswith(_MADE_BY_ROUTERS)):
            offer = self._new_offer(asked.id)  # the decode leg came first
            offer.timer = asyncio.get_running_loop().call_later(self._options.kv_lease_s, self._expired, asked.id)
        if offer is None:
            connection.reply(404, wire.to_json({"error": "no such blocks"}))
            return
        offer.waiting = (connection, asked.lacks)
        if offer.number < 0:
            connection.gone = functools.partial(self._left, asked.id)
        if offer.ready:
            self._transfer(connection, asked.id, offer, asked.lacks)

    def _left(self, name: str) -> None:
        """Who came first has left before the prompt came: nobody waits in this room."""
        offer = self._offers.get(name)
        if offer is not None and offer.number < 0:
            self._drop(name, fetched=False)

    def _transfer(self, connection: Connection, name: str, offer: Offer, lacks: int) -> None:
        options = self._options
        offer.fetching = True
        connection.gone = functools.partial(self._unread, name)
        if self._faults.draw("transfer_fail") is not None:
            self.counts["failed"] += 1
            offer.waiting = None
            connection.reply(500, wire.to_json({"error": "transfer failed"}))
            self._drop(name, fetched=False)
            return
        seconds = (options.transfer_setup_s + lacks * options.kv_bytes_per_token / options.transfer_bytes_per_s) / (
            options.speed
        )
        slow = self._faults.draw("transfer_slow")
        if slow is not None:
            seconds = seconds * slow.factor
        asyncio.get_running_loop().call_later(seconds, self._transferred, connection, name)

    def _transferred(self, connection: Connection, name: str) -> None:
        if name not in self._offers:
            return
        self.counts["fetched"] += 1
        if connection.busy:
            connection.reply(200, b"{}")
        self._drop(name, fetched=True)

    # -- the decode side ----------------------------------------------------------------------------------------------

    def _fetch_first(
        self, connection: Line, asked: Generate, shape: Shape, address: tuple[str, int, str], fault: Draw
    ) -> None:
        task = asyncio.get_running_loop().create_task(self._fetched(connection, asked, shape, address, fault))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        connection.gone = task.cancel  # type: ignore[assignment]  # what cancel returns is of no interest

    async def _fetched(
        self, connection: Line, asked: Generate, shape: Shape, address: tuple[str, int, str], fault: Draw
    ) -> None:
        host, port, name = address
        lacks = self._pump.model.lacks(asked.work)
        arrived = await fetched(host.strip("[]"), port, msgspec.json.encode({"id": name, "lacks": lacks}))
        if not connection.busy:
            return
        if not arrived and self._options.kv_load_failure_policy == "fail":
            self.counts["failed"] += 1
            connection.gone = None
            connection.reply(500, wire.error_body(500, "KV transfer failed", "InternalServerError"))
            return
        if not arrived:
            self.counts["recomputed"] += 1
        make = StreamAnswer if asked.stream else WholeAnswer
        answer = make(connection, asked, shape, fault(), cached_tokens=self._options.cached_tokens)
        self._run(connection, msgspec.structs.replace(asked.work, transferred=arrived), answer)

    def named(self, rid: str, line: Line) -> None:
        """Remember a request by the name that its client gave it, so that it can be aborted."""
        if len(self._rids) > OFFERS_MAX:
            self._rids = {rid: known for rid, known in self._rids.items() if known.busy}
        self._rids[rid] = line

    def abort(self, connection: Connection, request: HttpRequest) -> None:
        """`POST /abort_request`: end one request by its `rid`; unknown ones are fine."""
        rid = decode(legs_decoder, request.body).rid
        known = self._rids.pop(rid, None) if rid is not None else None
        connection.reply(200, b"")
        if known is not None and known.busy and known is not connection:
            known.kill()

    def _run(self, connection: Line, work: Any, answer: Any) -> int:
        pump = self._pump
        number = pump.run(work, answer)
        connection.gone = functools.partial(pump.abort, number)
        return number
