"""Text to tokens and back: any cut of the tokens gives the same text, and replies of engines get theirs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from turnout.coordinator.rehearsal import Rehearsal
from turnout.coordinator.tokenizers import ByteTokenizer, FileTokenizer, Tokenizer, load_tokenizer
from turnout.engines import megatron as wire

TEXT = "Grüße, 世界! 🚆 turnout turnout"


@pytest.fixture(scope="module")
def file_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> FileTokenizer:
    tokenizers = pytest.importorskip("tokenizers", reason="the extra `tokenizers` is not installed")
    vocabulary = tokenizers.Tokenizer(tokenizers.models.BPE())
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<eos>"])
    vocabulary.train_from_iterator([TEXT], trainer)
    directory = tmp_path_factory.mktemp("model")
    # As models do that begin with a special token.
    vocabulary.post_processor = tokenizers.processors.TemplateProcessing("<eos> $A", special_tokens=[("<eos>", 0)])
    vocabulary.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_bytes(
        msgspec.json.encode({"chat_template": "{{ messages[0].content }}"})
    )
    return FileTokenizer(directory)


def pieces(tokenizer: Tokenizer, tokens: list[int], size: int) -> str:
    stream = tokenizer.detokenizer()
    return "".join(stream.feed(tokens[at : at + size]) for at in range(0, len(tokens), size)) + stream.flush()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_any_cut_gives_the_same_text(size: int, file_tokenizer: FileTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), file_tokenizer):
        tokens = tokenizer.encode(TEXT)
        assert pieces(tokenizer, tokens, size) == tokenizer.decode(tokens) == TEXT


def test_no_piece_ends_inside_a_character(file_tokenizer: FileTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), file_tokenizer):
        stream = tokenizer.detokenizer()
        assert "\ufffd" not in "".join(stream.feed([token]) for token in tokenizer.encode(TEXT))


def test_names(tmp_path: Path, file_tokenizer: FileTokenizer) -> None:
    assert load_tokenizer("none") is None
    assert isinstance(load_tokenizer("bytes"), ByteTokenizer)
    assert file_tokenizer.chat_template == "{{ messages[0].content }}"
    with pytest.raises(OSError, match=r"tokenizer\.json"):
        load_tokenizer(f"hf:{tmp_path}")


def test_special_tokens_are_not_shown(file_tokenizer: FileTokenizer) -> None:
    assert file_tokenizer.decode([*file_tokenizer.encode("abc"), 0]) == "abc"


def test_plain_prompts_begin_with_special_tokens_and_templates_write_their_own(file_tokenizer: FileTokenizer) -> None:
    assert file_tokenizer.begin("abc") == [0, *file_tokenizer.encode("abc")]
    rendered = file_tokenizer.render([{"role": "user", "content": "abc"}])
    assert 0 not in file_tokenizer.encode(rendered)


@pytest.mark.parametrize(
    "template", ["", "{{ messages[0].x.y }}", "{{ raise_exception('no') }}", "{{ ''.__class__.__mro__ }}"]
)
def test_conversations_that_no_template_takes_are_value_errors(template: str, file_tokenizer: FileTokenizer) -> None:
    before = file_tokenizer.chat_template
    try:
        file_tokenizer.chat_template, file_tokenizer._template = template, None
        with pytest.raises(ValueError, match=r"template|no"):
            file_tokenizer.render([{"role": "user", "content": "abc"}])
    finally:
        file_tokenizer.chat_template, file_tokenizer._template = before, None


def test_finished_maps_get_their_text_and_a_failure_gives_nil() -> None:
    there = Rehearsal(detokenize=ByteTokenizer().decode)
    there.engines(b"e")
    there.clients(b"c")
    texts = []
    for number, tokens in enumerate(([104, 105], None)):
        there.say(b"c", wire.submit(number, "p", {}))
        (attempt,) = there.door.requests.open.values()
        there.say(b"e", wire.replied([{"request_id": attempt.server_id, "generated_tokens": tokens}]))
        texts.append(there.read(b"c")[0][2]["generated_text"])
    assert texts == ["hi", None]
    assert there.door.tally.detokenize_failures == 1
