"""Text to token ids and back, for doors that serve text: bytes for tests, or a Hugging Face tokenizer file.

Files are read from a local directory only. Both directions may be called on the event loop: they take microseconds.
"""

from __future__ import annotations

import codecs
import errno
from pathlib import Path
from typing import Any, Protocol

import msgspec

_HF = "hf:"
_PENDING = "\ufffd"  # what an incomplete character decodes to


class Detokenizer(Protocol):
    """Turns the tokens of one answer into text as they come."""

    def feed(self, tokens: list[int]) -> str:
        """Text that these tokens complete; an unfinished character waits."""
        ...

    def flush(self) -> str:
        """What is left at the end."""
        ...


class Tokenizer(Protocol):
    """One vocabulary."""

    def render(self, messages: list[dict[str, Any]]) -> str:
        """A conversation as the prompt of its answer. Raises ValueError when the model has no template for it."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, and no others: a chat template has written its special tokens itself."""
        ...

    def begin(self, text: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens that such a prompt begins with."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """Text of a whole answer, special tokens left out."""
        ...

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental decoder."""
        ...


def load_tokenizer(name: str) -> Tokenizer | None:
    """The tokenizer that `coordinator.tokenizer` names; None for `none`.

    Raises OSError when its files cannot be used, or the library that reads them is not installed.
    """
    if name == "none":
        return None
    if name == "bytes":
        return ByteTokenizer()
    return FileTokenizer(Path(name.removeprefix(_HF)))


class ByteTokenizer:
    """One token per byte of UTF-8; ids beyond 255 stand for nothing."""

    def render(self, messages: list[dict[str, Any]]) -> str:
        """One line a message, and the role of the next."""
        return "".join(f"<|{m.get('role', '')}|>{_text_of(m.get('content'))}\n" for m in messages) + "<|assistant|>"

    def encode(self, text: str) -> list[int]:
        """Its bytes."""
        return list(text.encode())

    begin = encode

    def decode(self, tokens: list[int]) -> str:
        """The text of bytes."""
        return _raw(tokens).decode("utf-8", "replace")

    def detokenizer(self) -> Detokenizer:
        """A decoder of UTF-8."""
        return _ByteStream()


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, tokens: list[int]) -> str:
        return self._decoder.decode(_raw(tokens))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


def _raw(tokens: list[int]) -> bytes:
    return bytes(token for token in tokens if 0 <= token <= 255)  # noqa: PLR2004 - a byte


class FileTokenizer:
    """`tokenizer.json` of a directory, and the chat template of `tokenizer_config.json` or `chat_template.jinja`."""

    def __init__(self, directory: Path) -> None:
        # An optional extra: only doors that name such a directory need the library.
        path = directory / "tokenizer.json"
        try:
            from tokenizers import Tokenizer as Vocabulary

            self._vocabulary: Any = Vocabulary.from_file(str(path))
            self.chat_template = _template_of(directory)
        except Exception as error:
            # The library raises bare exceptions; a missing library is a fault of the installation like a missing file.
            raise OSError(errno.EINVAL, f"coordinator.tokenizer: {path} cannot be used, {error}") from error
        self._template: Any = None

    def render(self, messages: list[dict[str, Any]]) -> str:
        """Render the model's own template in a sandbox: a template is a program that came with a model."""
        if not self.chat_template:
            raise ValueError("the tokenizer of this model has no chat template; use /v1/completions")
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        try:
            if self._template is None:
                environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as upstream renders
                environment.globals["raise_exception"] = _refuse
                self._template = environment.from_string(self.chat_template)
            return str(self._template.render(messages=messages, add_generation_prompt=True))
        except (TemplateError, TypeError) as error:
            raise ValueError(f"messages do not fit the chat template: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids alone."""
        return list(self._vocabulary.encode(text, add_special_tokens=False).ids)

    def begin(self, text: str) -> list[int]:
        """Token ids with those that the tokenizer adds by itself."""
        return list(self._vocabulary.encode(text, add_special_tokens=True).ids)

    def decode(self, tokens: list[int]) -> str:
        """Text without special tokens."""
        return str(self._vocabulary.decode(tokens, skip_special_tokens=True))

    def detokenizer(self) -> Detokenizer:
        """A decoder that looks back to where the last text began, since tokens join differently at a start."""
        return _FileStream(self)


class _FileStream:
    """Decodes a window of tokens: `_start` … `_shown` gave text already, the rest is new."""

    def __init__(self, tokenizer: FileTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = 0

    def feed(self, tokens: list[int]) -> str:
        self._tokens += tokens
        before = self._tokenizer.decode(self._tokens[: self._shown])
        text = self._tokenizer.decode(self._tokens)
        if text.endswith(_PENDING) or len(text) <= len(before):
            return ""
        # Only the tokens of the last text stay: they are the context of the next ones.
        self._tokens = self._tokens[self._shown :]
        self._shown = len(self._tokens)
        return text[len(before) :]

    def flush(self) -> str:
        before = self._tokenizer.decode(self._tokens[: self._shown])
        return self._tokenizer.decode(self._tokens)[len(before) :]


def _text_of(content: Any) -> str:
    """The text of a message, parts joined. Raises ValueError for parts that are not text."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise ValueError("content is neither a string nor a list of text parts")


def _refuse(message: str) -> str:
    """What templates call to refuse a conversation."""
    raise ValueError(message)


def _template_of(directory: Path) -> str:
    plain = directory / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    config = directory / "tokenizer_config.json"
    if not config.is_file():
        return ""
    found = msgspec.json.decode(config.read_bytes()).get("chat_template", "")
    if isinstance(found, list):
        named = [entry.get("template", "") for entry in found if entry.get("name") == "default"]
        found = named[0] if named else ""
    return found if isinstance(found, str) else ""
