"""OpenAI prompts to `Prompt`: the rendering that block keys are made of, and the counts of the context pre-check.

Rendering: scheduling §1.1 (records with tag bytes that cannot occur in UTF-8; it stops before the first part that is
not text). Counting: request-path §7. Token prompts are never rendered.
"""

from __future__ import annotations

from typing import Final

import msgspec
import xxhash

from turnout.core.admission.precheck import units
from turnout.core.prefix.rendering import CALL, NAME, PROMPT, ROLE, TEXT, TOOLS, render_role
from turnout.core.request import Prompt
from turnout.dialects.fields import InvalidPrompt, Members, invalid_prompt
from turnout.dialects.openai_shapes import (
    CALLS,
    LOOSE_MESSAGES,
    MESSAGES,
    NULL,
    PROMPT_OR_LIST,
    TEXT_OR_NULL,
    Call,
    Loose,
    Message,
    Part,
)

_TOKEN_MAX: Final = 2**31 - 1
_SALTS = ("chat_template", "chat_template_kwargs", "reasoning_effort")
_SALT_NAMES: Final = frozenset(_SALTS)
# Compact forms of recent tools spans: agents send the same tools with every turn. Bounded by entries and by size.
_TOOLS_MEMO: Final[dict[int, bytes]] = {}
_TOOLS_MEMO_MAX: Final = 256
_TOOLS_MEMO_SPAN_MAX_BYTES: Final = 65_536


_ROLES: Final = {role: render_role(role) for role in ("system", "user", "assistant", "tool", "developer")}


def messages_of(found: Members) -> list[Message]:
    """Decode the messages of a chat with an error that names path, value and expectation."""
    raw = found.get("messages")
    if raw is None:
        raise InvalidPrompt("messages", "nothing", "a non-empty array of messages")
    try:
        return MESSAGES.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return [_as_far_as_read(message) for message in LOOSE_MESSAGES.decode(raw)]
    except (msgspec.DecodeError, RecursionError) as error:
        raise invalid_prompt("messages", bytes(raw), str(error)) from None


def chat(messages: list[Message], found: Members) -> Prompt:
    """Render and count a chat conversation."""
    if not messages:
        raise InvalidPrompt("messages", "[]", "a non-empty array of messages")
    records: list[bytes] = []
    tools_bytes = 0
    tools = found.get("tools") or found.get("functions")
    if tools is not None:
        span = bytes(tools)
        if span != b"null":
            tools_bytes = len(bytes(found["tools"])) if "tools" in found else 0
            records += (TOOLS, _compact(span))
    total = 0
    rendering = True
    for message in messages:
        content = message.content
        if rendering:
            records.append(ROLE)
            records.append(_ROLES.get(message.role) or render_role(message.role))
            if message.name:
                records += (NAME, message.name.encode())
        if isinstance(content, str):
            total += len(content) if content.isascii() else units(content)
            if rendering:
                records.append(TEXT)
                records.append(content.encode())
        elif content is not None:
            rendering, counted = _parts(content, records, rendering=rendering)
            total += counted
        if message.tool_calls:
            total += _calls(message.tool_calls, records if rendering else [])
    return Prompt(rendered=b"".join(records), units=total, messages=len(messages), tools_bytes=tools_bytes)


def completion(found: Members) -> Prompt:
    """Render and count the prompt of /v1/completions; of a list of prompts the largest counts and the first renders."""
    raw = found.get("prompt")
    if raw is None or bytes(raw) in (b"null", b'""', b"[]"):
        raise InvalidPrompt("prompt", "nothing", "a non-empty string, array of strings or of token ids")
    try:
        prompt = PROMPT_OR_LIST.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidPrompt(
            "prompt", bytes(raw), "a string, array of strings, of integers or of integer arrays"
        ) from None
    if type(prompt) is str:
        return Prompt(rendered=PROMPT + prompt.encode(), units=units(prompt))
    kinds = {type(item) for item in prompt}
    if kinds == {str}:
        return Prompt(
            rendered=PROMPT + str(prompt[0]).encode(), units=max(units(str(item)) for item in prompt), count=len(prompt)
        )
    if kinds == {int}:
        return Prompt(tokens=_token_ids(prompt))
    if kinds == {list}:
        lists = [_token_ids(item) for item in prompt]
        return Prompt(tokens=max(lists, key=len), count=len(lists))
    raise InvalidPrompt("prompt", bytes(raw), "items of one kind: strings, integers or integer arrays")


def embedding(found: Members) -> Prompt:
    """Check and count the input of /v1/embeddings; embeddings leave no prefix behind, so nothing is rendered."""
    raw = found.get("input")
    if raw is None or bytes(raw) in (b"null", b"[]"):
        raise InvalidPrompt("input", "nothing", "a string or non-empty array")
    try:
        value = PROMPT_OR_LIST.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidPrompt("input", bytes(raw), "a string or an array of strings or token ids") from None
    if type(value) is str:
        return Prompt(units=units(value))
    return Prompt(units=max((units(item) for item in value if type(item) is str), default=0))


def render_salt(found: Members) -> str:
    """Hex of xxh3_64 over the compact, key-sorted object of the fields that change the rendering; "" without any."""
    if _SALT_NAMES.isdisjoint(found):
        return ""
    present = {name: _json_of(found[name]) for name in _SALTS if name in found}
    return xxhash.xxh3_64_hexdigest(msgspec.json.encode(present, order="sorted"))


def _as_far_as_read(loose: Loose) -> Message:
    """J6: what only the engine checks may have any shape; rendering ends before what it cannot read."""
    content: str | list[Part] | None
    if isinstance(loose.content, list):
        content = [Part(text=_text(part.get("text", NULL))) for part in loose.content]
    else:
        content = loose.content
    try:
        calls = CALLS.decode(loose.tool_calls)
    except msgspec.DecodeError:
        calls = None
        content = [Part(text=content), Part()] if isinstance(content, str) else [*(content or ()), Part()]
    return Message(loose.role, content, _text(loose.name), calls)


def _text(raw: msgspec.Raw) -> str | None:
    try:
        text: str | None = TEXT_OR_NULL.decode(raw)
    except msgspec.DecodeError:
        return None
    return text


def _parts(parts: list[Part], records: list[bytes], *, rendering: bool) -> tuple[bool, int]:
    counted = 0
    for part in parts:
        if part.text is None:
            rendering = False  # blocks before an image are kept, blocks after it do not exist
            continue
        counted += units(part.text)
        if rendering:
            records += (TEXT, part.text.encode())
    return rendering, counted


def _calls(calls: list[Call], records: list[bytes]) -> int:
    counted = 0
    for call in calls:
        if call.function is not None:
            counted += units(call.function.arguments)
            records += (CALL, call.function.name.encode(), NAME, call.function.arguments.encode())
    return counted


def _compact(span: bytes) -> bytes:
    if len(span) > _TOOLS_MEMO_SPAN_MAX_BYTES:
        return msgspec.json.encode(_json_of(span))
    digest = xxhash.xxh3_128_intdigest(span)
    compact = _TOOLS_MEMO.get(digest)
    if compact is None:
        if len(_TOOLS_MEMO) >= _TOOLS_MEMO_MAX:
            _TOOLS_MEMO.clear()
        compact = _TOOLS_MEMO[digest] = msgspec.json.encode(_json_of(span))
    return compact


def _json_of(span: msgspec.Raw | bytes) -> object:
    """Decode a member that is only hashed; one with numbers out of range (J2) stands for itself, as it was sent."""
    try:
        return msgspec.json.decode(span)
    except msgspec.DecodeError:
        return msgspec.Raw(bytes(span))


def _token_ids(items: list[int]) -> tuple[int, ...]:
    for index, item in enumerate(items):
        if not 0 <= item <= _TOKEN_MAX:
            raise InvalidPrompt(f"prompt[{index}]", str(item), f"a token id 0…{_TOKEN_MAX}")
    return tuple(items)
