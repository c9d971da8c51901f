"""Rendering, tokens, the next-word rule and stop strings of the simulated model."""

import re

import pytest
import xxhash

from turnout.sim.render import Message, render_chat, render_prompt
from turnout.sim.text import WORDS, StopSearch, Writer, pack, pack_ids, readable, rendered_of, text_seed, unpack


def test_words_are_4096_distinct_tokens() -> None:
    assert len(set(WORDS)) == 4096
    assert all(re.fullmatch(r"[a-z]{3} ", word) for word in WORDS)
    assert all(len(pack(word.encode())) == 4 for word in WORDS)


@pytest.mark.parametrize(
    ("rendered", "pieces"),
    [
        (b"", []),
        (b"abc def", [b"abc ", b"def"]),
        (b"abcd e", [b"abcd", b" ", b"e"]),
        (b"abcdefgh\n", [b"abcd", b"efgh", b"\n"]),
        (b"\xffuser\xfehi there", [b"\xff", b"user", b"\xfe", b"hi ", b"ther", b"e"]),
        (b"a  b", [b"a ", b" ", b"b"]),
    ],
)
def test_a_word_ends_with_its_end_byte_and_is_cut_from_its_start(rendered: bytes, pieces: list[bytes]) -> None:
    assert unpack(pack(rendered)) == [int.from_bytes(piece, "little") for piece in pieces]


def test_token_ids_and_bytes_agree() -> None:
    packed = pack(render_prompt("Grüße, 世界!\nnext"))
    assert pack_ids(unpack(packed)) == packed
    assert readable(rendered_of(packed)) == "Grüße, 世界!\nnext"


def test_a_conversation_renders_its_records_in_order() -> None:
    messages = [
        Message(role="developer", content="be brief"),
        Message(role="user", name="ann", content=[{"type": "text", "text": "a"}, {"type": "image_url"}, {"text": "b"}]),
        Message(role="assistant", tool_calls=[{"id": "x", "function": {"name": "f", "arguments": '{"q": 1}'}}]),
    ]
    expected = (
        b'\xfb[{"b":1,"a":2}]\xffsystem\xfebe brief\xffuser\xf9ann\xfea\xfeb'
        b'\xffassistant\xfdf\xf9{"q": 1}\xffassistant\xfe'
    )
    assert render_chat(messages, [{"b": 1, "a": 2}]) == expected


def test_the_next_word_is_the_hash_of_all_bytes_so_far() -> None:
    seed = text_seed("sim", 7)
    so_far = b"\xf8once upon"
    writer = Writer(seed=seed, mean_output_tokens=5, so_far=so_far)
    for _ in range(50):
        expected = WORDS[xxhash.xxh3_64_intdigest(so_far, seed) % 4096]
        text, token = writer.word()
        so_far += token
        assert text == expected
        assert writer.ended == (xxhash.xxh3_64_intdigest(so_far, seed + 1) % 5 == 0)


def test_text_depends_on_the_model_and_the_seed() -> None:
    assert len({text_seed("a", 0), text_seed("b", 0), text_seed("a", 1)}) == 3


def test_a_stop_string_across_words_is_cut_and_never_shown() -> None:
    search = StopSearch(["c d", "zzz"])
    shown = [search.feed(text) for text in ("abc ", "def ")]
    assert ("".join(shown), search.hit) == ("ab", "c d")


def test_text_held_back_for_a_stop_string_is_shown_at_the_end() -> None:
    search = StopSearch(["never"])
    assert search.feed("abc ") + search.feed("nev ") + search.flush() == "abc nev "
    assert search.hit is None
