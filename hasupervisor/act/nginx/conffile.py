"""Reads nginx's configuration files: which file includes which, and the few directives that we must know."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_BARE = re.compile(r"(?:\\.|\$\{|[^\s;{\\])+", re.S)
_QUOTED = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'", re.S)
_BLANK = re.compile(r"(?:\s+|#[^\n]*)+")
_LUA = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|--[^\n]*|[{}]", re.S)  # strings, comments, braces
_ESCAPE = re.compile(r"\\(.)", re.S)

# What `Tree.settings` keeps.
_KNOWN = frozenset({"pid", "error_log", "access_log", "log_format"})


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a directive, and where it stands in the file's text, quotes included."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Directive:
    words: tuple[Word, ...]
    opens: bool  # a block follows


def directives(text: str) -> Iterator[Directive | None]:
    """The directives of a file in order; None closes a block. Never raises: broken files are nginx's to judge."""
    at = 0
    words: list[Word] = []
    while at < len(text):
        if blank := _BLANK.match(text, at):
            at = blank.end()
        elif text[at] in ";{":
            yield Directive(tuple(words), opens=text[at] == "{")
            if text[at] == "{" and words and words[0].text.endswith("_by_lua_block"):
                at = _end_of_code(text, at)  # Lua between braces, not nginx's language
            else:
                at += 1
            words = []
        elif text[at] == "}":
            yield None
            at += 1
            words = []
        else:
            word = _word(text, at)
            words.append(word)
            at = word.end


def _word(text: str, at: int) -> Word:
    pattern, trim = (_QUOTED, 1) if text[at] in "\"'" else (_BARE, 0)
    found = pattern.match(text, at)
    if not found or found.end() == at:  # an open quote, a backslash at the end: take the rest
        return Word(text[at:], at, len(text))
    return Word(_ESCAPE.sub(r"\1", text[at + trim : found.end() - trim]), at, found.end())


def _end_of_code(text: str, at: int) -> int:
    depth = 0
    for found in _LUA.finditer(text, at):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return found.start()  # the closing brace is read again, as the end of the block
    return len(text)


@dataclass(frozen=True, slots=True)
class Include:
    word: Word
    matches: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """One file, by the path that nginx opens it by."""

    path: Path
    text: str
    includes: tuple[Include, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """A directive that we know, with the blocks around it: ("http", "server")."""

    context: tuple[str, ...]
    name: str
    arguments: tuple[str, ...]
    raw: str  # the arguments as they stand in the file


@dataclass(slots=True)
class Tree:
    """What nginx reads when it is started with `main`, in the order in which it reads."""

    main: Path
    sources: dict[Path, Source] = field(default_factory=dict)
    settings: list[Setting] = field(default_factory=list)
    reached: dict[Path, int] = field(default_factory=dict)  # file -> how many settings nginx had read before it
    watched: set[Path] = field(default_factory=set)  # files, and folders that a pattern looks into
    unreadable: dict[Path, str] = field(default_factory=dict)

    def first(self, name: str, context: tuple[str, ...] = ()) -> Setting | None:
        """The first directive of that name in exactly that context."""
        return next((found for found in self.settings if found.name == name and found.context == context), None)


def quoted(text: object) -> str:
    """A string as one nginx word."""
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def real(path: Path) -> str:
    """The file that a path leads to, whether it exists or not: how two paths to one file are told to be one."""
    return os.path.realpath(path)


def read_tree(main: Path, given: Mapping[str, str] | None = None) -> Tree:
    """Follows every include from `main`. `given` maps real paths to the text that is to be read in their place."""
    tree = Tree(main)
    _visit(tree, main, (), given or {})
    return tree


def _visit(tree: Tree, path: Path, context: tuple[str, ...], given: Mapping[str, str]) -> None:
    if path in tree.reached:
        return
    tree.reached[path] = len(tree.settings)
    tree.watched.add(path)
    text = given.get(real(path))
    if text is None:
        try:
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            tree.unreadable[path] = error.strerror or str(error)
            return
    includes: list[Include] = []
    blocks = list(context)
    for directive in directives(text):
        if directive is None:
            if len(blocks) > len(context):
                blocks.pop()
            continue
        if not directive.words:
            continue
        name, *arguments = (word.text for word in directive.words)
        if directive.opens:
            blocks.append(name)
        elif name == "include" and len(arguments) == 1:
            matches = _matches(tree, arguments[0])
            includes.append(Include(directive.words[1], matches))
            for match in matches:
                _visit(tree, match, tuple(blocks), given)
        elif name in _KNOWN and arguments:
            raw = text[directive.words[1].start : directive.words[-1].end]
            tree.settings.append(Setting(tuple(blocks), name, tuple(arguments), raw))
    tree.sources[path] = Source(path, text, tuple(includes))


def _matches(tree: Tree, argument: str) -> tuple[Path, ...]:
    """The files that an include takes, as nginx finds them: relative to the folder of the main file, sorted."""
    pattern = os.path.normpath(tree.main.parent / argument)
    if not any(sign in argument for sign in "*?["):
        return (Path(pattern),)
    folder = Path(pattern).parent
    if not any(sign in str(folder) for sign in "*?["):
        tree.watched.add(folder)
    # glob, not Path.glob: it leaves hidden files out, as nginx does.
    return tuple(Path(match) for match in sorted(glob.glob(pattern)))  # noqa: PTH207
