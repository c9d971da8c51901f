"""The shapes that msgspec decodes OpenAI requests and answers into, as far as routing and accounting read them.

They stand apart because msgspec reads their annotations while the program runs, which a compiled module does not keep.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

INT_MAX = 2**31 - 1
NULL = msgspec.Raw(b"null")  # a Raw cannot be optional: a union with None takes nothing but null


class Function(msgspec.Struct, gc=False):
    """The called function of a tool call."""

    name: str = ""
    arguments: str = ""


class Call(msgspec.Struct, gc=False):
    """One tool call of an assistant's message."""

    function: Function | None = None


class Part(msgspec.Struct, gc=False):
    """One part of a content; everything that is not text stays unread."""

    type: str | None = None
    text: str | None = None


class Message(msgspec.Struct, gc=False):
    """One message of a chat, as far as rendering and counting read it."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None


class Loose(msgspec.Struct, gc=False):
    """A message of which only what routing cannot do without has a shape (J6)."""

    role: str
    content: str | list[dict[str, msgspec.Raw]] | None = None
    name: msgspec.Raw = NULL
    tool_calls: msgspec.Raw = NULL


class Usual(msgspec.Struct, gc=False):
    """The members that most chats consist of, but for the messages, of which only the place is left (a 0)."""

    model: str
    messages: Literal[0]
    stream: bool | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=INT_MAX)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=0, le=INT_MAX)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    user: str | None = None


MESSAGES = msgspec.json.Decoder(list[Message])
LOOSE_MESSAGES = msgspec.json.Decoder(list[Loose])
TEXT_OR_NULL = msgspec.json.Decoder(str | None)
CALLS = msgspec.json.Decoder(list[Call] | None)
PROMPT_OR_LIST = msgspec.json.Decoder(str | list[str | int | list[int]])
USUAL = msgspec.json.Decoder(Usual)


class UsageDetails(msgspec.Struct, gc=False):
    """Parts of the counts."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class ReportedUsage(msgspec.Struct, gc=False):
    """What an engine counted."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: UsageDetails | None = None
    completion_tokens_details: UsageDetails | None = None
    cost: Any = None


class Delta(msgspec.Struct, gc=False):
    """What one event adds to one choice."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw = NULL


class Choice(msgspec.Struct, gc=False):
    """One choice of one event."""

    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct, gc=False):
    """One event of a stream."""

    choices: list[Choice] | None = None
    usage: ReportedUsage | None = None
    error: msgspec.Raw = NULL


class Answer(msgspec.Struct, gc=False):
    """A whole answer, as far as accounting reads it."""

    usage: ReportedUsage | None = None
    error: msgspec.Raw = NULL


class LooseChunk(msgspec.Struct, gc=False):
    """An event whose members are looked at one by one."""

    choices: msgspec.Raw = NULL
    usage: msgspec.Raw = NULL
    error: msgspec.Raw = NULL


CHUNK = msgspec.json.Decoder(Chunk)
USAGE = msgspec.json.Decoder(ReportedUsage)
LOOSE_CHUNK = msgspec.json.Decoder(LooseChunk)
ANSWER = msgspec.json.Decoder(Answer)
