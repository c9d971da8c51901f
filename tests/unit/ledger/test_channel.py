"""A message is whole, or the channel is at its end: whatever the other side does."""

import itertools
import socket
import struct
import threading
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.ledger.channel import FRAME_MAX, Channel, ChannelError, OversizeError


class Note(msgspec.Struct, frozen=True, tag=True):
    """What these tests say to each other."""

    text: bytes
    number: int = 0


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield Channel(ours, Note), theirs
    ours.close()
    theirs.close()


def _framed(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


def test_messages_arrive_as_they_were_sent(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    other = Channel(theirs, Note)
    sent = [Note(b"", 1), Note(b"x" * 1_000_000, 2), Note(b"y", 3)]

    def talk() -> None:
        for note in sent:
            other.send(note)

    talking = threading.Thread(target=talk)
    talking.start()
    assert [channel.receive() for _ in sent] == sent
    talking.join()
    other.shut()
    with pytest.raises(ChannelError, match="closed"):
        channel.receive()


@given(cuts=st.lists(st.integers(0, 60), max_size=8))
def test_any_chunking_gives_the_same_messages(cuts: list[int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours, Note)
        sent = [Note(b"one", 1), Note(b"two", 2)]
        stream = b"".join(_framed(msgspec.msgpack.encode(note)) for note in sent)
        places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
        for start, end in itertools.pairwise(places):
            theirs.sendall(stream[start:end])
        assert [channel.receive() for _ in sent] == sent


@pytest.mark.parametrize("kept", [0, 1, 3, 4, 9])
def test_a_message_that_is_cut_is_the_end(ends: tuple[Channel, socket.socket], kept: int) -> None:
    channel, theirs = ends
    theirs.sendall(_framed(msgspec.msgpack.encode(Note(b"cut off")))[:kept])
    theirs.close()
    with pytest.raises(ChannelError, match="closed"):
        channel.receive()


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x93\x01", b"GET / HTTP/1.1", msgspec.msgpack.encode({"type": "X"})]
)
def test_what_is_no_message_is_the_end(ends: tuple[Channel, socket.socket], payload: bytes) -> None:
    channel, theirs = ends
    theirs.sendall(_framed(payload))
    with pytest.raises(ChannelError, match="no message"):
        channel.receive()


def test_a_length_that_none_has_is_the_end_before_memory_is_taken(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    theirs.sendall(struct.pack("<I", FRAME_MAX + 1))
    with pytest.raises(ChannelError, match=str(FRAME_MAX)):
        channel.receive()


def test_a_message_that_is_too_long_is_not_begun(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    with pytest.raises(OversizeError, match="Note"):
        channel.send(Note(bytes(FRAME_MAX)))
    channel.send(Note(b"short"))
    assert Channel(theirs, Note).receive() == Note(b"short")


def test_silence_is_the_end_after_some_time(ends: tuple[Channel, socket.socket]) -> None:
    channel, _ = ends
    channel.be_patient(0.01)
    with pytest.raises(ChannelError, match="in time"):
        channel.receive()


def test_a_peer_that_takes_nothing_is_the_end_after_some_time(ends: tuple[Channel, socket.socket]) -> None:
    channel, _ = ends
    channel.be_patient(0.01)
    with pytest.raises(ChannelError, match="not sent"):
        channel.send(Note(bytes(FRAME_MAX // 2)))


def test_who_waits_hears_at_once_that_it_is_over(ends: tuple[Channel, socket.socket]) -> None:
    channel, _ = ends
    heard: list[str] = []

    def wait() -> None:
        try:
            channel.receive()
        except ChannelError as error:
            heard.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    channel.shut()
    waiting.join(30)
    assert heard == ["closed"]
    with pytest.raises(ChannelError):
        channel.send(Note(b""))
