"""Where each key of a TOML document stands: a map from key path to line number.

`tomllib` gives values without positions. This scanner runs only on documents `tomllib` has accepted, so it follows the
grammar without checking it, and an input it misreads costs a line number in a message, never a value.
Paths look like `server.listen`, `endpoint[1].models[0]`, `endpoint[1].served_as."a.b"`.
"""

from __future__ import annotations

import re
from bisect import bisect_right

from turnout.config.errors import literal_key

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_INLINE_BLANK = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_STRINGS = (
    re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}', re.DOTALL),
    re.compile(r"'''.*?'{3,5}", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)


def key_lines(text: str) -> dict[str, int]:
    """Map every table, array element and key of a valid TOML `text` to the line (from 1) where it is written."""
    return _Scanner(text).document()


def child(path: str, name: str) -> str:
    """Extend a key path by a member."""
    return f"{path}.{literal_key(name)}" if path else literal_key(name)


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._newlines = [index for index, letter in enumerate(text) if letter == "\n"]
        self._lines: dict[str, int] = {}
        self._last_element: dict[str, int] = {}

    def document(self) -> dict[str, int]:
        table = ""
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text.startswith("[[", self._at):
                table = self._header(brackets=2)
            elif self._text[self._at] == "[":
                table = self._header(brackets=1)
            else:
                self._key_value(table)
            self._skip(_BLANK)
        return self._lines

    def _header(self, brackets: int) -> str:
        line = self._line()
        self._at += brackets
        *parents, last = self._key()
        path = ""
        for name in parents:
            path = self._latest(child(path, name))
            self._lines.setdefault(path, line)
        path = child(path, last)
        if brackets == 1:
            path = self._latest(path)
        else:
            self._lines.setdefault(path, line)
            self._last_element[path] = self._last_element.get(path, -1) + 1
            path = self._latest(path)
        self._lines[path] = line
        self._skip(_INLINE_BLANK)
        self._at += brackets
        return path

    def _latest(self, path: str) -> str:
        """A header below an array of tables means its latest element."""
        return f"{path}[{self._last_element[path]}]" if path in self._last_element else path

    def _key_value(self, table: str) -> None:
        line = self._line()
        path = table
        for name in self._key():
            path = child(path, name)
            self._lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._value(path)

    def _key(self) -> list[str]:
        """Read a dotted key and the blanks around it."""
        names = []
        while True:
            self._skip(_INLINE_BLANK)
            quoted = self._string()
            if quoted is None:
                bare = _BARE_KEY.match(self._text, self._at)
                assert bare is not None, "tomllib accepted this document"
                self._at = bare.end()
                names.append(bare.group())
            else:
                names.append(quoted)
            self._skip(_INLINE_BLANK)
            if not self._text.startswith(".", self._at):
                return names
            self._at += 1

    def _value(self, path: str) -> None:
        self._skip(_INLINE_BLANK)
        if self._string() is not None:
            return
        opening = self._text[self._at : self._at + 1]
        if opening == "[":
            self._elements(path)
        elif opening == "{":
            self._members(path)
        else:
            self._skip(_SCALAR)

    def _elements(self, path: str) -> None:
        self._at += 1
        index = 0
        while not self._closed("]"):
            element = f"{path}[{index}]"
            self._lines[element] = self._line()
            self._value(element)
            index += 1

    def _members(self, path: str) -> None:
        self._at += 1
        while not self._closed("}"):
            self._key_value(path)

    def _closed(self, bracket: str) -> bool:
        """Skip what separates members, and the closing bracket when it comes next."""
        self._skip(_BLANK)
        if self._text.startswith(",", self._at):
            self._at += 1
            self._skip(_BLANK)
        if self._at < len(self._text) and self._text[self._at] != bracket:
            return False
        self._at += 1
        return True

    def _string(self) -> str | None:
        """Read a string when one starts here. Escapes in keys are kept as written: nobody escapes an option's name."""
        for pattern in _STRINGS:
            found = pattern.match(self._text, self._at)
            if found is not None:
                self._at = found.end()
                return found.group()[1:-1]
        return None

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()

    def _line(self) -> int:
        return bisect_right(self._newlines, self._at - 1) + 1
