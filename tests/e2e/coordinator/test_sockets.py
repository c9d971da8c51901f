"""The door on real sockets: byte-level peers written from the page alone, our client and engine stub, CURVE, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
import zmq
import zmq.asyncio
import zmq.auth

from turnout.coordinator.client import CoordinatorClient, RequestFailed
from turnout.coordinator.control import State
from turnout.coordinator.engine import Echo, EnginePeer
from turnout.coordinator.listener import CoordinatorListener
from turnout.core.coordinator_options import Affinity, Coordinator
from turnout.engines.megatron import Header

PATIENCE_S = 10.0


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await body()

    uvloop.run(bounded())


@contextlib.asynccontextmanager
async def door(**options: Any) -> AsyncIterator[CoordinatorListener]:
    listener = CoordinatorListener(Coordinator(bind="tcp://127.0.0.1:*", **options), Affinity())
    await listener.start()
    try:
        yield listener
    finally:
        await listener.stop()
        assert listener.door.requests.open == {}


async def eventually(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - a condition of another peer has no event
            await asyncio.sleep(0.005)


async def engines(listener: CoordinatorListener, *names: bytes, step_s: float = 0.0) -> list[EnginePeer]:
    peers = [EnginePeer(listener.address, name, Echo(step_s)) for name in names]
    for peer in peers:
        peer.start()
    await eventually(lambda: len(listener.door.roster) == len(names))
    return peers


class RawPeer:
    """A DEALER that knows nothing but frames."""

    def __init__(self, context: zmq.asyncio.Context, address: str, identity: bytes | None = None) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        if identity is not None:
            self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.connect(address)

    async def say(self, hexed: str) -> None:
        await self._socket.send(bytes.fromhex(hexed))

    async def hear(self) -> str:
        frames: list[bytes] = await asyncio.wait_for(self._socket.recv_multipart(), PATIENCE_S)
        assert len(frames) == 1, "a surplus frame would be taken for a message"
        return frames[0].hex()

    async def hears_nothing(self) -> bool:
        return not await self._socket.poll(100)


def test_byte_level_peers_follow_the_published_script() -> None:
    async def script() -> None:
        async with door() as listener:
            context = zmq.asyncio.Context()
            engine = RawPeer(context, listener.address, b"mp-coord-0")
            await engine.say("")
            client = RawPeer(context, listener.address)
            await client.say("9100")
            assert await client.hear() == "9101"
            await client.say("951400a2686980c0")
            sent = await engine.hear()
            assert (sent[:4], sent[-10:]) == ("9514", "a2686980c0")
            number = sent[4:-10]
            assert number.startswith("ce") or int(number, 16) < 0x80 or number[:2] in {"cc", "cd"}
            item = "82aa" + b"request_id".hex() + number + "aa" + b"new_tokens".hex() + "92070b"
            await engine.say("921691" + item)
            assert await client.hear() == "931600" + item
            await client.say("921700")
            assert await engine.hear() == "9217" + number
            final = "82aa" + b"request_id".hex() + number + "a6" + b"status".hex() + "a9" + b"COMPLETED".hex()
            await engine.say("921591" + final)
            assert await client.hear() == "931500" + final
            for signal in ("9128", "912a", "912b", "9129", "922c03", "912e", "912f"):
                await client.say(signal)
                assert await engine.hear() == signal
            await client.say("9141")
            assert await client.hears_nothing()
            await engine.say("913c")
            await eventually(lambda: len(listener.door.roster) == 0)
            context.destroy(linger=0)

    run(script)


@pytest.mark.parametrize("ours", [True, False])
def test_the_framed_dialect_serves_streams_refusals_and_losses(ours: bool) -> None:  # noqa: FBT001 - a parameter
    async def script() -> None:
        async with door(dialect="framed", outbox_max=50) as listener:
            peers = [EnginePeer(listener.address, b"mp-coord-%d" % n, Echo(0.01), framed=True) for n in range(2)]
            for peer in peers:
                peer.start()
            await eventually(lambda: len(listener.door.roster) == 2)
            async with CoordinatorClient(listener.address, ours=ours, framed=True) as client:
                tokens: list[int] = []
                async for update in client.stream("abc", {"num_tokens_to_generate": 6}):
                    tokens += update.get("new_tokens", [])
                assert tokens == update["generated_tokens"] == list(b"abcabc")
                with pytest.raises(RequestFailed, match="bad_field:prompt"):
                    await client.submit("")
                futures = [client.submit([number, 1], {"num_tokens_to_generate": 9}) for number in range(10)]
                await eventually(lambda: peers[0].requests + peers[1].requests == 11)
                peers[0].close(goodbye=False)
                futures += [client.submit([99, 1], {"num_tokens_to_generate": 1}) for _ in range(2)]
                answers = await asyncio.gather(*futures)
                assert [answer["generated_tokens"][0] for answer in answers[:10]] == list(range(10))
                assert listener.door.tally.resent
            peers[1].close()

    run(script)


def test_every_reply_reaches_its_client_once() -> None:
    async def script() -> None:
        async with door() as listener:
            peers = await engines(listener, *(b"mp-coord-%d" % number for number in range(4)))
            clients = [CoordinatorClient(listener.address) for _ in range(8)]
            for client in clients:
                await client.connect()

            async def ask(client: CoordinatorClient, base: int) -> None:
                for number in range(125):
                    prompt = [base, number, 1]
                    answer = await client.submit(prompt, {"num_tokens_to_generate": 3})
                    assert answer["generated_tokens"] == prompt

            await asyncio.gather(*(ask(client, base) for base, client in enumerate(clients)))
            assert sum(peer.requests for peer in peers) == 1000
            assert min(peer.requests for peer in peers) > 50
            assert listener.door.tally.completed == 1000
            assert not listener.door.requests.open
            for client in clients:
                client.close()
            await eventually(lambda: not listener.door.clients.known)
            for peer in peers:
                peer.close()
            await eventually(lambda: len(listener.door.roster) == 0)

    run(script)


def test_streams_are_delivered_and_aborted_when_their_reader_leaves() -> None:
    async def script() -> None:
        async with door() as listener:
            (peer,) = await engines(listener, b"mp-coord-0", step_s=0.005)
            async with CoordinatorClient(listener.address) as client:
                tokens: list[int] = []
                async for update in client.stream("abc", {"num_tokens_to_generate": 6}):
                    if "new_tokens" in update:
                        tokens += update["new_tokens"]
                    else:
                        assert update["generated_tokens"] == tokens == list(b"abcabc")
                async for _ in client.stream("abc", {"num_tokens_to_generate": 1000}):
                    break
                await eventually(lambda: peer.aborts == 1)
                future = client.submit("abc", {"num_tokens_to_generate": 1000})
                await asyncio.sleep(0.02)
                future.cancel()
                await eventually(lambda: peer.aborts == 2)
                await eventually(lambda: not listener.door.requests.open)
            peer.close()

    run(script)


def test_refusals_are_raised_to_both_kinds_of_clients() -> None:
    async def script() -> None:
        async with door(empty_wait_s=0.05) as listener:
            for ours in (True, False):
                async with CoordinatorClient(listener.address, ours=ours) as client:
                    with pytest.raises(RequestFailed, match="bad_field:prompt"):
                        await client.submit("")
                    with pytest.raises(RequestFailed, match="no_engine"):
                        await client.submit("hello")

    run(script)


def test_a_killed_engine_loses_nothing_that_can_be_resent() -> None:
    async def script() -> None:
        async with door() as listener:
            peers = await engines(listener, b"mp-coord-0", b"mp-coord-1", step_s=0.02)
            async with CoordinatorClient(listener.address) as client:
                futures = [client.submit([number, 1], {"num_tokens_to_generate": 5}) for number in range(20)]
                await eventually(lambda: peers[0].requests + peers[1].requests == 20)
                peers[0].close(goodbye=False)
                # Nothing tells the door yet; the next message to the engine does.
                futures += [client.submit([99, 1], {"num_tokens_to_generate": 1}) for _ in range(2)]
                answers = await asyncio.gather(*futures)
                assert [answer["generated_tokens"][0] for answer in answers[:20]] == list(range(20))
                assert listener.door.tally.resent == 10
            peers[1].close()

    run(script)


def test_a_client_that_vanishes_is_forgotten_and_its_engines_told() -> None:
    async def script() -> None:
        async with door() as listener:
            (peer,) = await engines(listener, b"mp-coord-0", step_s=0.02)
            gone = CoordinatorClient(listener.address, identity=b"gone")
            await gone.connect()
            list(map(gone.submit, ["one", "two"]))
            for number in range(2):
                gone.send(bytes.fromhex("92170" + str(number + 5)))  # unknown numbers: ignored
            await eventually(lambda: peer.requests == 2)
            gone.close(goodbye=False)
            async with CoordinatorClient(listener.address) as client:
                await client.submit("three", {"num_tokens_to_generate": 2})
            await eventually(lambda: b"gone" not in listener.door.clients.known)
            await eventually(lambda: not listener.door.requests.open)
            peer.close()

    run(script)


def test_control_signals_reach_engines_in_the_states_they_take() -> None:
    async def script() -> None:
        async with door() as listener:
            (peer,) = await engines(listener, b"mp-coord-0")
            async with CoordinatorClient(listener.address) as client:
                client.signal(Header.PAUSE)
                await eventually(lambda: peer.state is State.PAUSED)
                waiting = client.submit("held", {"num_tokens_to_generate": 1})
                late = EnginePeer(listener.address, b"mp-coord-1", Echo())
                late.start()
                await eventually(lambda: late.state is State.PAUSED)
                client.signal(Header.SUSPEND)
                client.signal(Header.RESUME)
                client.signal(Header.UNPAUSE)
                assert (await waiting)["generated_length"] == 1
                await eventually(lambda: late.state is State.RUNNING)
                client.signal(Header.SET_GENERATION_EPOCH, 9)
                await eventually(lambda: (peer.epoch, late.epoch) == (9, 9))
                client.signal(Header.PAUSE)
                client.signal(Header.STOP)
                await eventually(lambda: len(listener.door.roster) == 0)
                assert (peer.state, late.state) == (State.STOPPING, State.STOPPING)

    run(script)


def test_a_restarted_engine_takes_over_its_identity() -> None:
    async def script() -> None:
        async with door() as listener:
            (first,) = await engines(listener, b"mp-coord-0", step_s=5.0)
            async with CoordinatorClient(listener.address) as client:
                future = client.submit("x", {"num_tokens_to_generate": 2})
                await eventually(lambda: first.requests == 1)
                # The old connection still looks open; without ROUTER_HANDOVER the new one would be ignored.
                second = EnginePeer(listener.address, b"mp-coord-0", Echo())
                second.start()
                assert (await future)["generated_tokens"] == list(b"xx")
                assert listener.door.roster.live[b"mp-coord-0"].incarnation == 2
                first.close(goodbye=False)
                second.close()

    run(script)


@pytest.mark.parametrize("name", [b"mp-coord-0", b"any name"])
def test_a_restarted_door_adopts_the_engines_it_expects_or_remembers(name: bytes, tmp_path: Path) -> None:
    is_expected = name == b"mp-coord-0"
    kept: dict[str, Any] = {} if is_expected else {"snapshot_path": str(tmp_path / "engines.json")}

    async def script() -> None:
        async with door(**kept) as listener:
            address = listener.address
            (peer,) = await engines(listener, name)
        options = Coordinator(bind=address, expected_engines=int(is_expected), **kept)
        async with contextlib.AsyncExitStack() as stack:
            second = CoordinatorListener(options, Affinity())
            await second.start()
            stack.push_async_callback(second.stop)
            await eventually(lambda: second.door.ready)
            assert second.door.tally.registrations == {"adopted": 1}
            async with CoordinatorClient(address) as client:
                assert (await client.submit("x", {"num_tokens_to_generate": 1}))["status"] == "COMPLETED"
            peer.close()

    run(script)


def test_a_taken_port_is_an_error_unless_another_may_be_used() -> None:
    async def script() -> None:
        async with door() as listener:
            taken = CoordinatorListener(Coordinator(bind=listener.address), Affinity())
            with pytest.raises(OSError, match=r"coordinator\.bind"):
                await taken.start()
            other = CoordinatorListener(Coordinator(bind=listener.address, port_fallback=True), Affinity())
            assert await other.start() != listener.address
            await other.stop()

    run(script)


def test_curve_admits_listed_keys_only(tmp_path: Path) -> None:
    async def script() -> None:
        _, secret_file = zmq.auth.create_certificates(tmp_path, "door")
        server_key, _ = zmq.auth.load_certificate(secret_file)
        listed, stranger = zmq.curve_keypair(), zmq.curve_keypair()
        async with door(curve_secret_file=secret_file, curve_clients=[listed[0].decode()]) as listener:
            peer = EnginePeer(listener.address, b"mp-coord-0", Echo(), server_key=server_key, keys=listed)
            peer.start()
            await eventually(lambda: listener.door.ready)
            async with CoordinatorClient(listener.address, server_key=server_key, keys=listed) as client:
                assert (await client.submit("x"))["status"] == "COMPLETED"
            refused: list[Awaitable[None]] = []
            for server, keys in ((server_key, stranger), (None, None)):
                client = CoordinatorClient(listener.address, server_key=server, keys=keys)
                refused.append(client.connect(timeout_s=0.25))
                with pytest.raises(TimeoutError):
                    await refused[-1]
                client.close(goodbye=False)
            peer.close()

    run(script)


def test_a_key_file_that_cannot_be_used_names_its_option(tmp_path: Path) -> None:
    async def script() -> None:
        public_file, _ = zmq.auth.create_certificates(tmp_path, "door")
        for name in (public_file, str(tmp_path / "missing"), str(tmp_path)):
            with pytest.raises(OSError, match=r"coordinator\.curve_secret_file"):
                await CoordinatorListener(
                    Coordinator(bind="tcp://127.0.0.1:*", curve_secret_file=name), Affinity()
                ).start()

    run(script)


def test_a_peer_that_does_not_read_harms_nobody() -> None:
    async def script() -> None:
        async with door(outbox_max=50) as listener:
            (peer,) = await engines(listener, b"mp-coord-0")
            context = zmq.asyncio.Context()
            deaf = context.socket(zmq.DEALER)
            deaf.setsockopt(zmq.RCVHWM, 1)
            deaf.setsockopt(zmq.RCVBUF, 4096)
            deaf.setsockopt(zmq.IDENTITY, b"deaf")
            deaf.connect(listener.address)
            await deaf.send(b"\x91\x00")
            await eventually(lambda: b"deaf" in listener.door.clients.known)
            async with CoordinatorClient(listener.address) as client:
                for number in range(4000):
                    await deaf.send(
                        bytes.fromhex("9514cd")
                        + number.to_bytes(2, "big")
                        + b"\xa1x\x81\xb6num_tokens_to_generate\xcd\x03\xe8\xc0"
                    )
                    if number % 100 == 0:
                        assert (await client.submit("x"))["status"] == "COMPLETED"
                await eventually(lambda: b"deaf" not in listener.door.clients.known)
                await eventually(lambda: not listener.door.requests.open)
                assert listener.door.tally.unreachable["client"] == 1
            context.destroy(linger=0)
            peer.close()

    run(script)


def test_the_schedule_is_written_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "schedule.jsonl"

    async def script() -> None:
        async with door(schedule_path=str(path), block_tokens=2) as listener:
            (peer,) = await engines(listener, b"mp-coord-0")
            async with CoordinatorClient(listener.address) as client:
                await client.submit([1, 2, 3, 4])
            peer.close()

    run(script)
    head, record = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert (head["policy"], head["num_requests"]) == ("affinity_load", 1)
    assert (record["endpoint"], record["num_hashes"], record["attempt"]) == ("mp-coord-0", 2, 1)
