"""Says on which line of a TOML text each key stands, which the standard library's parser does not."""

from __future__ import annotations

import tomllib
from bisect import bisect_left
from collections.abc import Iterator

# ("docker", "env", "MODEL_PATH") or, for an element of a list, ("docker", "volumes", 1)
KeyPath = tuple[str | int, ...]

_SPACE = " \t\r\n"
_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def key_lines(text: str) -> dict[KeyPath, list[int]]:
    """Every section, key, key of an inline table and element of a list, with the lines (from 1) where it is given.

    The text is expected to be TOML. In one that is not, keys after the mistake may be missing; nothing is raised, so
    that a second `min = 3`, which the parser refuses, can still be found.
    """
    found: dict[KeyPath, list[int]] = {}
    newlines = [i for i, char in enumerate(text) if char == "\n"]
    for path, position in _Scanner(text).statements():
        found.setdefault(path, []).append(bisect_left(newlines, position) + 1)
    return found


class _Scanner:
    """A cursor over the text; each method leaves it behind what it has read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def statements(self) -> Iterator[tuple[KeyPath, int]]:
        section: KeyPath = ()
        while self._skip(_SPACE):
            start = self.at
            if self._peek() == "[":
                self._skip("[ \t")
                section = self._key()
                yield section, start
                self._to_end_of_line()
            else:
                yield from self._pair(section)
                self._to_end_of_line()
            if self.at == start:  # not TOML: step over what cannot be read
                self.at += 1

    def _pair(self, above: KeyPath) -> Iterator[tuple[KeyPath, int]]:
        start = self.at
        key = self._key()
        if not key:
            return
        yield above + key, start
        self._skip(" \t")
        if self._peek() == "=":
            self.at += 1
            yield from self._value(above + key)

    def _value(self, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
        self._skip(" \t")
        match self._peek():
            case "[":
                yield from self._list(path)
            case "{":
                yield from self._table(path)
            case '"' | "'":
                self._string()
            case _:
                while self._peek() not in ("", ",", "]", "}", "\n", "#"):
                    self.at += 1

    def _list(self, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
        self.at += 1
        index = 0
        while self._skip(_SPACE + ",") and self._peek() != "]":
            start = self.at
            yield (*path, index), start
            yield from self._value((*path, index))
            index += 1
            if self.at == start:
                return
        self.at += 1

    def _table(self, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
        self.at += 1
        while self._skip(_SPACE + ",") and self._peek() != "}":
            start = self.at
            yield from self._pair(path)
            if self.at == start:
                return
        self.at += 1

    def _key(self) -> KeyPath:
        """A bare, quoted or dotted key; () where there is none."""
        parts: list[str | int] = []
        while True:
            self._skip(" \t")
            start = self.at
            if self._peek() in ('"', "'"):
                self._string()
                parts.append(_unquoted(self.text[start : self.at]))
            else:
                while self._peek() in _BARE:
                    self.at += 1
                if self.at == start:
                    return ()
                parts.append(self.text[start : self.at])
            self._skip(" \t")
            if self._peek() != ".":
                return tuple(parts)
            self.at += 1

    def _string(self) -> None:
        quote = self._peek()
        fence = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.at += len(fence)
        while self.at < len(self.text):
            if quote == '"' and self._peek() == "\\":
                self.at += 2
            elif self.text.startswith(fence, self.at):
                self.at += len(fence)
                while len(fence) == 3 and self._peek() == quote:  # up to two quotes may stand before the closing three
                    self.at += 1
                return
            elif len(fence) == 1 and self._peek() == "\n":
                return  # not TOML: the string is not closed
            else:
                self.at += 1

    def _skip(self, chars: str) -> bool:
        """Passes over these characters, and over comments where a line may end; False at the end of the text."""
        while self.at < len(self.text):
            if self._peek() == "#" and "\n" in chars:
                self._to_end_of_line()
            elif self._peek() in chars:
                self.at += 1
            else:
                return True
        return False

    def _to_end_of_line(self) -> None:
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end

    def _peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""


def _unquoted(raw: str) -> str:
    try:
        return str(tomllib.loads(f"key = {raw}")["key"])
    except tomllib.TOMLDecodeError:
        return raw.strip(raw[0])
