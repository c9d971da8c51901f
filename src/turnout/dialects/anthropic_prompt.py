"""Anthropic prompts to `Prompt`, in the same records as any other dialect writes (scheduling §1.1).

One conversation has the same keys through any door, so its structure is told as the engines' common form has it:
`system` is the first message, a tool's result is a message of the role `tool`, a tool is a function with parameters.
Counting: request-path §7, whose text is that of `system`, `content` and tool results.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import xxhash

from turnout.core.admission.precheck import units
from turnout.core.prefix.rendering import CALL, NAME, ROLE, TEXT, TOOLS, render_role
from turnout.core.request import Prompt
from turnout.dialects.anthropic_shapes import BLOCK, LOOSE_TURNS, SYSTEM, TURNS, Block, LooseTurn, Turn
from turnout.dialects.fields import InvalidPrompt, Members, invalid_prompt

_SYSTEM_ROLE: Final = ROLE + render_role("system")
_TOOL_ROLE: Final = ROLE + render_role("tool")
_ROLES: Final = {role: ROLE + render_role(role) for role in ("user", "assistant", "system")}
_SILENT: Final = frozenset(("thinking", "redacted_thinking"))
# A line that coding agents put before the system text, with a hash of the request in it. Engines take it out, because
# nothing after it could ever be found in a cache.
_ATTRIBUTION: Final = "x-anthropic-billing-header"
_UNREADABLE: Final = Block(type="unreadable")
# Compact forms of recent tools spans: agents send the same tools with every turn. Bounded by entries and by size.
_TOOLS_MEMO: Final[dict[int, bytes]] = {}
_TOOLS_MEMO_MAX: Final = 256
_TOOLS_MEMO_SPAN_MAX_BYTES: Final = 65_536


def turns_of(found: Members) -> list[Turn]:
    """Decode the messages with an error that names path, value and expectation."""
    raw = found.get("messages")
    if raw is None:
        raise InvalidPrompt("messages", "nothing", "a non-empty array of messages")
    try:
        return TURNS.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return [_as_far_as_read(turn) for turn in LOOSE_TURNS.decode(raw)]
    except (msgspec.DecodeError, RecursionError) as error:
        raise invalid_prompt("messages", bytes(raw), str(error)) from None


def conversation(turns: list[Turn], found: Members) -> Prompt:
    """Render and count a conversation with its tools and its system text."""
    if not turns:
        raise InvalidPrompt("messages", "[]", "a non-empty array of messages")
    records: list[bytes] = []
    tools = found.get("tools")
    tools_bytes = 0
    if tools is not None and bytes(tools) != b"null":
        tools_bytes = len(bytes(tools))
        records += (TOOLS, _functions(bytes(tools)))
    writer = _Writer(records)
    system = system_of(found)
    if system:
        writer.system(system)
    for turn in turns:
        writer.turn(turn)
    messages = len(turns) + (1 if system else 0)
    return Prompt(rendered=b"".join(records), units=writer.units, messages=messages, tools_bytes=tools_bytes)


def system_of(found: Members) -> str | list[Block] | None:
    """Decode the system text."""
    raw = found.get("system")
    if raw is None:
        return None
    try:
        system: str | list[Block] | None = SYSTEM.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidPrompt("system", bytes(raw), "a string or an array of text blocks") from None
    return system


class _Writer:
    """Writes records until the first block that is not text, and counts to the end."""

    __slots__ = ("_records", "_rendering", "units")

    def __init__(self, records: list[bytes]) -> None:
        self._records = records
        self._rendering = True
        self.units = 0

    def system(self, system: str | list[Block]) -> None:
        """Write the system text as the first message."""
        self._write(_SYSTEM_ROLE)
        if isinstance(system, str):
            self._text(system)
            return
        for block in system:
            if block.text is None:
                self._rendering = False
            elif not block.text.startswith(_ATTRIBUTION):
                self._text(block.text)

    def turn(self, turn: Turn) -> None:
        """Write one message; results of tools are messages of their own."""
        role = _ROLES.get(turn.role) or ROLE + render_role(turn.role)
        content = turn.content
        if not isinstance(content, list):
            self._write(role)
            if content is not None:
                self._text(content)
            return
        calls: list[Block] = []
        speaking = False
        for block in content:
            kind = block.type
            if kind == "tool_result":
                self._result(block)
                speaking = False
                continue
            if not speaking:
                self._write(role)
                speaking = True
            if kind == "tool_use":
                calls.append(block)
            elif kind == "text" and block.text is not None:
                self._text(block.text)
            elif kind not in _SILENT:
                self._rendering = False
        if not content:
            self._write(role)
        for call in calls:  # the common form has a message's calls after its text
            self._write(CALL)
            self._write((call.name or "").encode())
            self._write(NAME)
            self._write(bytes(call.input))

    def _result(self, block: Block) -> None:
        self._write(_TOOL_ROLE)
        content = block.content
        if isinstance(content, str):
            self._text(content)
        elif content is not None:
            for part in content:
                if part.type == "text" and part.text is not None:
                    self._text(part.text)
                else:
                    self._rendering = False

    def _text(self, text: str) -> None:
        self.units += units(text)
        if self._rendering:
            self._records.append(TEXT)
            self._records.append(text.encode())

    def _write(self, record: bytes) -> None:
        if self._rendering:
            self._records.append(record)


def _as_far_as_read(loose: LooseTurn) -> Turn:
    """J6: what only the engine checks may have any shape; rendering ends before what it cannot read."""
    if not isinstance(loose.content, list):
        return Turn(loose.role, loose.content)
    return Turn(loose.role, [_block(block) for block in loose.content])


def _block(loose: dict[str, msgspec.Raw]) -> Block:
    try:
        return BLOCK.decode(msgspec.json.encode(loose))
    except msgspec.DecodeError:
        return _UNREADABLE


def _functions(span: bytes) -> bytes:
    """Return tools as the compact form of functions; remembered, because agents send the same ones with every turn."""
    if len(span) > _TOOLS_MEMO_SPAN_MAX_BYTES:
        return _written(span)
    digest = xxhash.xxh3_128_intdigest(span)
    compact = _TOOLS_MEMO.get(digest)
    if compact is None:
        if len(_TOOLS_MEMO) >= _TOOLS_MEMO_MAX:
            _TOOLS_MEMO.clear()
        compact = _TOOLS_MEMO[digest] = _written(span)
    return compact


def _written(span: bytes) -> bytes:
    try:
        tools: list[Any] = msgspec.json.decode(span)
    except msgspec.DecodeError:  # numbers out of range (J2): it stands for itself, as it was sent
        return span
    return msgspec.json.encode([_function(tool) for tool in tools])


def _function(tool: Any) -> Any:
    """A tool of the client's own as a function; tools that the engine brings stay as they are."""
    if not isinstance(tool, dict) or "input_schema" not in tool:
        return tool
    function: dict[str, Any] = {"name": tool.get("name")}
    if "description" in tool:
        function["description"] = tool["description"]
    function["parameters"] = tool["input_schema"]
    return {"type": "function", "function": function}
