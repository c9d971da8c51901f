"""The shapes that msgspec decodes Anthropic requests and answers into, as far as routing and accounting read them.

They stand apart because msgspec reads their annotations while the program runs, which a compiled module does not keep.
"""

from __future__ import annotations

import msgspec

NULL = msgspec.Raw(b"null")  # a Raw cannot be optional: a union with None takes nothing but null


class Block(msgspec.Struct, gc=False):
    """One content block; what is neither text nor a tool's call or result stays unread."""

    type: str = "text"
    text: str | None = None
    name: str | None = None
    input: msgspec.Raw = NULL
    content: str | list[Block] | None = None


class Turn(msgspec.Struct, gc=False):
    """One message, as far as rendering and counting read it."""

    role: str
    content: str | list[Block] | None = None


class LooseTurn(msgspec.Struct, gc=False):
    """A message of which only what routing cannot do without has a shape (J6)."""

    role: str
    content: str | list[dict[str, msgspec.Raw]] | None = None


class Metadata(msgspec.Struct, gc=False):
    """Whom a request is for."""

    session_id: str | None = None
    user_id: str | None = None


TURNS = msgspec.json.Decoder(list[Turn])
LOOSE_TURNS = msgspec.json.Decoder(list[LooseTurn])
BLOCK = msgspec.json.Decoder(Block)
SYSTEM = msgspec.json.Decoder(str | list[Block] | None)
METADATA = msgspec.json.Decoder(Metadata)


class ReportedUsage(msgspec.Struct, gc=False):
    """What an engine counted. The three input counts are parts of one whole, none contains another."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class Delta(msgspec.Struct, gc=False):
    """What one event adds to a block, or says about the message."""

    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class StartedBlock(msgspec.Struct, gc=False):
    """What a block begins with."""

    type: str = ""
    text: str | None = None


class Started(msgspec.Struct, gc=False):
    """What a message begins with."""

    usage: ReportedUsage | None = None


class Said(msgspec.Struct, gc=False):
    """One event of a stream."""

    type: str = ""
    message: Started | None = None
    content_block: StartedBlock | None = None
    delta: Delta | None = None
    usage: ReportedUsage | None = None


class SaidLoosely(msgspec.Struct, gc=False):
    """An event whose other members have shapes of an engine's own."""

    type: str = ""


class Answer(msgspec.Struct, gc=False):
    """A whole answer, as far as accounting reads it."""

    type: str = ""
    usage: ReportedUsage | None = None
    error: msgspec.Raw = NULL


class LooseAnswer(msgspec.Struct, gc=False):
    """A whole answer with usage of another shape."""

    type: str = ""
    error: msgspec.Raw = NULL


class Written(msgspec.Struct, gc=False):
    """The text of a whole answer."""

    content: list[Block] = []


SAID = msgspec.json.Decoder(Said)
SAID_LOOSELY = msgspec.json.Decoder(SaidLoosely)
ANSWER = msgspec.json.Decoder(Answer)
LOOSE_ANSWER = msgspec.json.Decoder(LooseAnswer)
WRITTEN = msgspec.json.Decoder(Written)
