"""The coordinator door without its socket: messages and time in, messages out (coordinator §2 to §7).

Every entry point returns what is to be sent, in order. The shell reports what could not be sent (`unreachable`) and
which probes of lost engines could (`reached`). No input raises: a bug of ours ends only the message it was about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from turnout.coordinator.affinity import Chooser
from turnout.coordinator.blocks import Blocks, Tokenize
from turnout.coordinator.clients import Clients
from turnout.coordinator.control import TRANSITIONS, State
from turnout.coordinator.peers import Client, Engine, Request, Send
from turnout.coordinator.records import Offenders, Records, peer_text
from turnout.coordinator.requests import Requests
from turnout.coordinator.roster import Roster
from turnout.coordinator.signals import apply
from turnout.coordinator.tally import Tally
from turnout.core.coordinator_options import Affinity, Coordinator
from turnout.engines import megatron as wire
from turnout.engines.megatron import OURS, Header
from turnout.engines.megatron_framed import dialect_of
from turnout.engines.megatron_messages import REQUESTS, Message, Refusal, Sender

_LOOK_S = 1.0  # how often peers are looked through for probes


def _nobody_open(_: int) -> bool:
    return False


class Door:
    """One door. `first_id` is a number of chance; `tokenize` and `detokenize` are those of the engines, if known."""

    def __init__(
        self,
        options: Coordinator,
        affinity: Affinity,
        now: float,
        *,
        first_id: int = 0,
        tokenize: Tokenize | None = None,
        detokenize: Callable[[list[int]], str] | None = None,
        timer: Callable[[], float] = time.perf_counter,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.options = options
        self.tally = Tally()
        self.records = Records()
        self.offenders = Offenders()
        self.closing = False
        self.kind = ""  # type of the message handled last
        self._out: list[Send] = []
        self._dialect = dialect_of(options.dialect)
        self.chooser = Chooser(affinity, options.max_requests, now)
        self.roster = Roster(self.chooser)
        self.requests = Requests(
            options,
            self.roster,
            self.chooser,
            self.tally,
            self._out,
            first_id=first_id,
            timer=timer,
            wall_s=wall_s,
            dialect=self._dialect,
            detokenize=detokenize,
        )
        self.clients = Clients(options.clients_max, self._out)
        self.blocks = Blocks(
            options.model,
            options.block_tokens,
            self.chooser.blocks_wanted,
            tokenize,
            counts=bool(options.schedule_path),
        )
        self._looked_at = now
        self.roster.expect([b"mp-coord-%d" % number for number in range(options.expected_engines)])
        self._handlers: dict[Header, Callable[[bytes, Message, float], None]] = {
            Header.CONNECT: self._connect,
            Header.SUBMIT_REQUEST: self._submit,
            Header.SUBMIT_REQUEST_WITH_KV: self._submit,
            Header.ENGINE_REPLY: self._reply,
            Header.ENGINE_REPLY_PARTIAL: self._reply,
            Header.ABORT_REQUEST: self._abort,
            Header.RELEASE_KV: self._release,
            Header.DISCONNECT: self._disconnect,
            Header.SHUTDOWN: self._shutdown,
        }

    @property
    def ready(self) -> bool:
        """Whether requests find an engine: all expected ones are there, or any when none are named."""
        return len(self.roster) >= max(1, self.options.expected_engines) and not self.closing

    def on_message(self, frames: Sequence[bytes], now: float) -> list[Send]:
        """Take one message as it came off the socket, `[identity, payload]` and bodies when framed."""
        identity = frames[0] if frames else b""
        client = self.clients.get(identity)
        engine = None if client is not None else self.roster.speaker(identity)
        if client is None and engine is None and identity in self.roster.lost and self._dialect.is_reply(frames):
            engine = self._register(identity, "adopted", now)
        sender = Sender.CLIENT if client is not None else Sender.ENGINE if engine is not None else Sender.NOBODY
        if sender is Sender.NOBODY and self.offenders.is_muted(identity, now):
            self.tally.muted += 1
            return []
        header = None
        accepted = self.tally.accepted
        message: Message | Refusal | None = None
        try:
            message = self._dialect.read(frames, sender, _nobody_open if client is None else client.open.__contains__)
            header = message.header
            self.kind = "REGISTRATION" if header is None else header.name
            if isinstance(message, Refusal):
                self.kind = message.kind
                self._refused(frames, message, client, now)
            else:
                self._handle(identity, message, client, now)
        except Exception as error:  # noqa: BLE001 - a bug of ours must not end the door; it is counted and recorded
            kind = "unknown" if header is None else header.name
            self.tally.internal_errors[kind] += 1
            self.records.message_error("internal_error", kind, type(error).__name__, frames, now)
            if client is not None and isinstance(message, Message) and header in REQUESTS:
                self._end_broken(client, message.values[0], accepted)
        return self.take()

    def tick(self, now: float) -> list[Send]:
        """Let time pass: call it a few times a second."""
        for engine in self.roster.settled(now):
            self.requests.settle(engine, now)
        self.requests.expire(now)
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            self._probe(now)
        return self.take()

    def unreachable(self, send: Send, now: float) -> list[Send]:
        """A message could not be sent: its peer is gone."""
        engine = self.roster.live.get(send.identity)
        if engine is not None:
            self.tally.unreachable["engine"] += 1
            engine.control = send.control or engine.control
            self._leave(engine, "unreachable", now)
        elif self.clients.get(send.identity) is not None:
            self._client_gone(send.identity)
        if send.server_id:
            self.requests.unsent(send.server_id, now)
        return self.take()

    def reached(self, identity: bytes, now: float) -> list[Send]:
        """A lost engine answers the telephone: it registers only once, so it is taken back as it is."""
        if identity in self.roster.lost and self.clients.get(identity) is None:
            self._register(identity, "adopted", now)
        return self.take()

    def client_gone(self, identity: bytes) -> list[Send]:
        """A client cannot be reached, or does not read."""
        self._client_gone(identity)
        return self.take()

    def saturated(self, identity: bytes, now: float, *, full: bool) -> list[Send]:
        """The outbox of an engine is full, or has room again."""
        engine = self.roster.live.get(identity)
        if engine is not None and engine.saturated is not full:
            engine.saturated = full
            self.roster.changed()
            self.requests.engines_changed(now)
        return self.take()

    def drain(self) -> list[Send]:
        """Accept nothing more."""
        self.closing = True
        self.requests.drain()
        return self.take()

    def take(self) -> list[Send]:
        """Hand over what is to be sent, after acting on `requests` directly."""
        out = self._out[:]
        self._out.clear()
        return out

    # -- messages -----------------------------------------------------------------------------------------------------

    def _handle(self, identity: bytes, message: Message, client: Client | None, now: float) -> None:
        header = message.header
        if client is not None:
            client.heard_at = now
        if header is None:
            self.tally.messages["REGISTRATION"] += 1
            self._registered(identity, now)
            return
        self.tally.messages[header.name] += 1
        handler = self._handlers.get(header)
        if handler is not None:
            handler(identity, message, now)
        else:
            self._signal(identity, message, now)

    def _registered(self, identity: bytes, now: float) -> None:
        old = self.roster.live.get(identity)
        if old is not None:
            self._leave(old, "restarted", now)
        engine = self._register(identity, "new" if old is None else "again", now)
        if self.roster.is_contested(identity, now):
            self.tally.contested += 1
            self.records.add("error", "identity_contested", now, peer=peer_text(identity), engine=engine.name)

    def _register(self, identity: bytes, kind: str, now: float) -> Engine:
        self.offenders.forget(identity)
        lost = self.roster.lost.get(identity)
        # A restarted process knows nothing of its old requests, and an adopted one is a new incarnation: either way
        # there is no reply to wait for.
        old = self.roster.settle(identity)
        engine = self.roster.join(identity, lost.control if lost and kind == "adopted" else State.RUNNING, now)
        self.tally.registrations[kind] += 1
        self.records.add(
            "info", "coordinator_engine_joined", now, engine=engine.name, incarnation=engine.incarnation, kind=kind
        )
        wanted = self.roster.state
        if wanted is not State.RUNNING and engine.control is State.RUNNING:
            self._out.append(Send(identity, wire.signal(Header.PAUSE), control=State.RUNNING))
            engine.control = State.PAUSED
        elif wanted is State.RUNNING and engine.control is State.PAUSED:
            self._out.append(Send(identity, wire.signal(Header.UNPAUSE), control=State.PAUSED))
            engine.control = State.RUNNING
        self.roster.changed()
        if old is not None:
            self.requests.settle(old, now)
        self.requests.engines_changed(now)
        return engine

    def _connect(self, identity: bytes, message: Message, now: float) -> None:
        if self.clients.get(identity) is not None:
            self.tally.invalid["CONNECT", "connected_already"] += 1
            return
        self.offenders.forget(identity)
        self.roster.lost.pop(identity, None)
        ours = bool(message.values) and OURS in message.values[0]
        if not self.clients.connect(identity, now, ours=ours):
            self.tally.clients_refused += 1

    def _submit(self, identity: bytes, message: Message, now: float) -> None:
        client = self.clients.known[identity]
        header = message.header
        assert header is not None
        number = message.values[0]
        if header is Header.SUBMIT_REQUEST_WITH_KV and not self.options.kv_handoff:
            self.tally.invalid[header.name, "not_served"] += 1
            self.requests.refuse(client, number, "not_served")
            return
        request = Request(client, number, header, message.raw[1:], now)
        has_media = header is Header.SUBMIT_REQUEST and len(message.values) > 3 and message.values[3]  # noqa: PLR2004
        if header is Header.SUBMIT_REQUEST and not has_media:
            request.keys, request.tokens = self.blocks.keys(message.values[1])
            request.root = self.blocks.root
        self.requests.accept(request, now)

    def _reply(self, identity: bytes, message: Message, now: float) -> None:
        engine = self.roster.speaker(identity)
        assert engine is not None
        header = message.header
        assert header is not None
        if message.bad_items:
            self.tally.invalid[header.name, "bad_item"] += message.bad_items
            self.records.message_error("client_error", header.name, "bad_item", [identity], now)
        deliver = self.requests.answered if header is Header.ENGINE_REPLY else self.requests.progressed
        if not engine.parity_known and header is Header.ENGINE_REPLY:
            self._compare_hashes(engine, message, now)
        foreign = deliver(engine, message, now)
        if foreign:
            self.tally.internal_errors[header.name] += 1
            self.records.message_error("internal_error", header.name, "foreign", [identity], now, server_id=foreign[0])

    def _compare_hashes(self, engine: Engine, message: Message, now: float) -> None:
        """Compare the engine's own block hashes with ours, once: if they differ, affinity is worth nothing."""
        agrees = self.blocks.compared(message.values, self.requests.open)
        if agrees is None:
            return
        engine.parity_known = True
        if not agrees:
            self.tally.hash_mismatches += 1
            self.records.add("error", "hash_parity", now, engine=engine.name)

    def _abort(self, identity: bytes, message: Message, now: float) -> None:
        request = self.clients.known[identity].open.get(message.values[0])
        if request is not None:
            self.requests.abort(request, now)

    def _release(self, identity: bytes, message: Message, now: float) -> None:
        if not self.options.kv_handoff:
            self._unserved(identity, Header.RELEASE_KV, "not_served", now)
            return
        payload = wire.release(message.values[0])
        self._out.extend([Send(engine_identity, payload) for engine_identity in self.roster.live])

    def _disconnect(self, identity: bytes, message: Message, now: float) -> None:  # noqa: ARG002 - a handler's signature
        engine = self.roster.live.get(identity)
        if engine is not None:
            self._leave(engine, "disconnected", now)
        # It says so last, so no reply can follow, nor will it be back by itself.
        self.roster.lost.pop(identity, None)
        departed = self.roster.settle(identity)
        if departed is not None:
            self.requests.settle(departed, now)
        client = self.clients.remove(identity)
        if client is not None:
            self.requests.forget(client)

    def _shutdown(self, identity: bytes, message: Message, now: float) -> None:  # noqa: ARG002 - as above
        if not self.options.allow_shutdown:
            self._unserved(identity, Header.SHUTDOWN, "not_allowed", now)
            return
        self.records.add("info", "coordinator_shutdown", now, peer=peer_text(identity))
        self.closing = True
        self.requests.drain()

    def _signal(self, identity: bytes, message: Message, now: float) -> None:
        header = message.header
        assert header is not None
        if not self.options.allow_control:
            self._unserved(identity, header, "not_allowed", now)
            return
        epoch = message.values[0] if message.values else None
        before = self.roster.state
        reached = apply(header, epoch, self.roster, self._out)
        if reached is None:
            if before not in TRANSITIONS[header].silent:
                self._unserved(identity, header, "illegal_state", now)
            return
        if header is Header.SET_GENERATION_EPOCH:
            self.blocks.new_epoch(epoch)
        self.requests.engines_changed(now)
        self.tally.signals[header.name] += 1
        audit = {"signal": header.name, "peer": peer_text(identity), "engines": reached}
        audit |= {"before": before.value, "after": self.roster.state.value}
        self.records.add("info", "coordinator_signal", now, **audit)

    # -- faults and departures ----------------------------------------------------------------------------------------

    def _client_gone(self, identity: bytes) -> None:
        client = self.clients.remove(identity)
        if client is not None:
            self.tally.unreachable["client"] += 1
            self.requests.forget(client)

    def _leave(self, engine: Engine, why: str, now: float) -> None:
        is_silent = why == "unreachable"
        if self.roster.leave(engine, now, self.options.late_grace_s, may_return=is_silent):
            self.records.add(
                "warning",
                "coordinator_engine_left",
                now,
                engine=engine.name,
                incarnation=engine.incarnation,
                reason=why,
                open=len(engine.open),
                engines=len(self.roster),
            )

    def _refused(self, frames: Sequence[bytes], refusal: Refusal, client: Client | None, now: float) -> None:
        identity = frames[0] if frames else b""
        self.tally.invalid[refusal.kind, refusal.reason] += 1
        if client is None and self.roster.speaker(identity) is None:
            self.tally.unknown_sender += refusal.reason == "unknown_sender"
            self.offenders.offended(identity, now)
        self.records.message_error("client_error", refusal.kind, refusal.reason, frames, now, refusal.number)
        if client is None:
            return
        if refusal.header in REQUESTS and refusal.number is not None and refusal.number not in client.open:
            self.requests.refuse(client, refusal.number, refusal.reason)
        elif client.ours:
            self._out.append(Send(identity, wire.refused(None, refusal.reason)))

    def _end_broken(self, client: Client, number: int, accepted: int) -> None:
        """End the request whose message met a bug of ours, unless it got away before."""
        request = client.open.get(number)
        if request is None and self.tally.accepted == accepted:
            self.requests.refuse(client, number, "internal")
        elif request is not None and request.attempt is None:
            self.requests.fail(request, "internal")

    def _unserved(self, identity: bytes, header: Header, reason: str, now: float) -> None:
        """A valid message that is not acted on here and now."""
        self.tally.invalid[header.name, reason] += 1
        self.records.message_error("client_error", header.name, reason, [identity], now)
        client = self.clients.get(identity)
        if client is not None and client.ours:
            self._out.append(Send(identity, wire.refused(None, reason)))

    def _probe(self, now: float) -> None:
        self._out.extend([Send(identity, wire.PROBE) for identity in self.roster.silent(now, self.options.heartbeat_s)])
        self._out.extend([Send(identity, wire.PROBE, adopts=True) for identity in self.roster.callable(now)])
        self.clients.probe(now)
