"""The file: read, parsed, and every mistake of form told by its line."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hasupervisor.config.lines import KeyPath, key_lines
from hasupervisor.config.problem import ConfigError, Place, Problem, file_place
from hasupervisor.config.values import MASK, looks_secret, toml

DEFAULT_PATH = Path("/etc/chatglm-ha/config.toml")


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file that knows its lines."""

    name: str
    table: Mapping[str, object] = field(default_factory=dict)
    lines: Mapping[KeyPath, list[int]] = field(default_factory=dict)

    def place(self, path: KeyPath) -> Place:
        """Where a key or section is given; of what is inside a value, the nearest line that is known."""
        for length in range(len(path), 0, -1):
            if lines := self.lines.get(path[:length]):
                return file_place(self.name, lines[0])
            below = [lines[0] for other, lines in self.lines.items() if other[:length] == path[:length]]
            if below:
                return file_place(self.name, min(below))
        return file_place(self.name)


def read_document(path: Path | None) -> Document:
    """Reads and parses `path`, or the default path. Raises ConfigError."""
    file = path or DEFAULT_PATH
    name = str(file)
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise _problem(file_place(name), "", _how_to_get_one(path)) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        told = f"cannot be read: {reason}; see its owner and mode with: ls -ld {shlex.quote(name)}"
        raise _problem(file_place(name), "", told) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        told = f"not UTF-8: byte 0x{raw[error.start]:02x}; save the file as UTF-8"
        raise _problem(file_place(name, line), "", told) from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line, key, told = _explain(text, str(error))
        raise _problem(file_place(name, line), key, told) from None
    return Document(name, table, key_lines(text.replace("\r\n", "\n")))


def _problem(place: Place, key: str, text: str) -> ConfigError:
    return ConfigError((Problem(place.text, key, text),))


def _how_to_get_one(path: Path | None) -> str:
    if path and path != DEFAULT_PATH:
        return f"there is no such file; see what there is with: ls -l {shlex.quote(str(path.parent))}"
    command = f"mkdir -p {DEFAULT_PATH.parent} && {sys.executable} -m hasupervisor.config > {DEFAULT_PATH}"
    return f"there is no such file; for one with every key and its default: {command}"


# --- mistakes of form -------------------------------------------------------------------------------------------------

_AT = re.compile(r"^(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$", re.DOTALL)
_PAIR = re.compile(r"^\s*(?P<key>[A-Za-z0-9_.-]+)\s*(?P<sign>[=:])\s*(?P<value>.*?)\s*$")
_BARE_TEXT = re.compile(r"[^\s\"'\[\]{}#,=][^\"'\[\]{}#=]*")
_CLASHES = ("Cannot overwrite", "Cannot declare", "Cannot mutate", "Duplicate")
_TWICE = re.compile(r"Cannot declare \((?P<parts>.*?),?\) twice")


def _explain(text: str, message: str) -> tuple[int, str, str]:
    """Line, key and sentence for what the TOML parser says, which knows neither key nor intention."""
    found = _AT.match(message)
    what = found["what"] if found else message
    if what.startswith(_CLASHES) and (again := _given_twice(text)):
        return again
    if found and not found["line"] and (cut := _cut_off(text)):
        return cut
    line = int(found["line"]) if found and found["line"] else len(text.rstrip().split("\n"))
    if twice := _TWICE.match(what):
        section = ".".join(part.strip(" '") for part in twice["parts"].split(","))
        return line, section, f"the section has begun above already; move these keys there, or remove [{section}]"
    pair = _PAIR.match(text.split("\n")[line - 1].partition(" #")[0])
    if pair:
        key = _full_key(text, line, pair["key"])
        if meant := _meant(what, pair["key"], pair["sign"], pair["value"]):
            return line, key, f"not TOML: {meant}"
    column = f" (column {found['column']})" if found and found["column"] else ""
    return line, key if pair else "", f"not TOML: {what[:1].lower()}{what[1:]}{column}"


def _meant(what: str, key: str, sign: str, value: str) -> str | None:
    """The usual slips of those who write YAML or INI all day."""
    if sign == ":":
        return f"a key and its value are joined by =; write {key} = {value}"
    if not value:
        return "there is no value after ="
    if what.startswith(("Illegal character '\\n'", "Unterminated string")):
        return "the text has no closing quote"
    if _BARE_TEXT.fullmatch(value) and what.startswith(("Invalid value", "Expected newline")):
        return f"text stands in quotes; write {key} = {toml(MASK if looks_secret(key) else value)}"
    return None


def _cut_off(text: str) -> tuple[int, str, str] | None:
    """The value that is still open where the file ends."""
    keys = [(lines[-1], path) for path, lines in key_lines(text).items() if not any(isinstance(p, int) for p in path)]
    if not keys:
        return None
    line, path = max(keys, key=lambda entry: entry[0])
    if not re.search(r"=\s*([\[{]|\"\"\"|''')", text.split("\n")[line - 1]):
        return None
    return line, ".".join(map(str, path)), "not TOML: the list, table or text that begins here has no end"


def _given_twice(text: str) -> tuple[int, str, str] | None:
    """The first key or section that is given a second time: the parser's own words do not say which."""
    repeated = [(lines[1], path, lines[0]) for path, lines in key_lines(text).items() if len(lines) > 1]
    for line, path, first in sorted(repeated, key=lambda entry: entry[0]):
        if not isinstance(path[-1], int):
            return line, ".".join(map(str, path)), f"given twice; the first is on line {first}"
    return None


def _full_key(text: str, line: int, key: str) -> str:
    section = ""
    for above in text.split("\n")[: line - 1]:
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", above):
            section = header[1] + "."
    return section + key
