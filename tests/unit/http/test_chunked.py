"""Chunked framing: any split reads alike, nothing wrong passes, the short cut agrees with the decoder (L4, H7, H8)."""

from __future__ import annotations

import collections
import itertools

import pytest

from turnout.http.chunked import ChunkedDecoder, FramingError, PayloadTooLargeError, whole_chunks

WHOLE = b"5\r\nhello\r\n001;a=b\r\n!\r\nA\r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\n"


@pytest.mark.parametrize("size", range(1, len(WHOLE) + 1))
def test_any_split_gives_the_same_payload(size: int) -> None:
    decoder = ChunkedDecoder()
    pieces = [p for at in range(0, len(WHOLE), size) for p in decoder.feed(WHOLE[at : at + size])]
    assert b"".join(pieces) == b"hello!0123456789"
    assert (decoder.done, decoder.rest) == (True, b"")


def test_what_follows_the_message_is_kept_for_the_next_one() -> None:
    decoder = ChunkedDecoder()
    decoder.feed(WHOLE + b"GET / HTTP/1.1\r\n")
    assert (decoder.done, decoder.rest) == (True, b"GET / HTTP/1.1\r\n")


BROKEN = [
    b"\r\nhello\r\n", b"x\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b"1_0\r\n", b" 1\r\n", b"1 \r\n", b"12345678901234567\r\n", b"5\nhello",
    b"5\rhello", b"5\r\nhelloX\r\n", b"5\r\nhello\n", b"5\r\nhello\rX", b"1;a\nb\r\n", b"1;\x00\r\n", b"0\r\nHost: a\r\n\r\n",
    b"0\r\nContent-Length: 1\r\n\r\n", b"0\r\nno colon\r\n\r\n", b"0\r\n folded\r\n\r\n", b"0\r\nA: b\x00\r\n\r\n", b"0\r\nA: b\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("framed", BROKEN)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_wrong_raises_however_it_arrives(framed: bytes, at_once: bool) -> None:  # noqa: FBT001 - a parameter
    decoder = ChunkedDecoder()
    pieces = [framed] if at_once else [framed[at : at + 1] for at in range(len(framed))]
    with pytest.raises(FramingError):
        collections.deque(map(decoder.feed, pieces))


def test_a_chunk_beyond_the_payload_is_told_apart_and_seen_before_its_data() -> None:
    decoder = ChunkedDecoder(payload_max=10)
    assert decoder.feed(b"A\r\n0123456789\r\n") == [b"0123456789"]
    with pytest.raises(PayloadTooLargeError):
        decoder.feed(b"1\r\n")


@pytest.mark.parametrize("piece", [b"1\r\n \r\n", b"0000000000000001\r\n \r\n", b"1;" + b"a" * 100 + b"\r\n \r\n"])
def test_L4_framing_may_cost_the_payload_and_4_kib(piece: bytes) -> None:
    decoder = ChunkedDecoder()
    with pytest.raises(FramingError, match="more framing than payload"):
        collections.deque(map(decoder.feed, [piece] * 2000))
    free = ChunkedDecoder(overhead_max=2**64)
    assert sum(len(p) for _ in range(2000) for p in free.feed(piece)) == 2000


def test_endless_lines_and_trailers_are_bounded() -> None:
    for framed in (b"1;" + b"a" * 5000, b"0\r\nA: " + b"a" * 40_000, b"0\r\n" + b"A: b\r\n" * 101):
        with pytest.raises(FramingError):
            ChunkedDecoder(overhead_max=2**64).feed(framed)


CHUNKS = [b"1\r\na\r\n", b"0a\r\n0123456789\r\n", b"3\r\n\r\n\r\r\n", b"7\r\n0\r\n\r\nab\r\n"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_short_cut_agrees_with_the_decoder(count: int) -> None:
    for chosen in itertools.product(CHUNKS, repeat=count):
        framed = b"".join(chosen)
        assert whole_chunks(framed) == b"".join(ChunkedDecoder().feed(framed))


NOT_WHOLE = [b"", b"1", b"1\r\n", b"1\r\na", b"1\r\na\r", b"1\r\na\r\n1", b"0\r\n\r\n", b"1\r\na\r\n0\r\n\r\n", b"1;x\r\na\r\n", b"zz\r\na\r\n", b"\r\n", b"1\r\nab\r\n"]  # fmt: skip


@pytest.mark.parametrize("framed", NOT_WHOLE)
def test_the_short_cut_leaves_everything_else_to_the_decoder(framed: bytes) -> None:
    assert whole_chunks(framed) is None
