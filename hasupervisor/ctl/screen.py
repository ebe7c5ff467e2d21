"""The two outputs: data on stdout, words about it on stderr, colours and rewritten lines only on a terminal."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import TextIO

from hasupervisor.ctl.text import Paint, cut, width

_CODES = {"green": "32", "yellow": "33", "red": "31", "bold": "1"}
_DURATIONS = re.compile(r"\b\d+(\.\d+)? (s|min)\b")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def columns_of(stream: TextIO) -> int | None:
    """The width of the terminal; None where there is none and lines may be as long as they are."""
    return _size(stream)[0] if is_terminal(stream) else None


def _size(stream: TextIO) -> tuple[int, int]:
    try:
        found = os.get_terminal_size(stream.fileno())
    except OSError:
        return 80, 24
    return found.columns or 80, found.lines or 24  # 0 where nobody has set it


def painter(*, color: bool) -> Paint:
    """Colours the text, or leaves it as it is."""

    def paint(text: str, colour: str) -> str:
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if color and colour in _CODES else text

    return paint


def emit(*lines: str) -> None:
    """Data."""
    if lines:
        print(*lines, sep="\n", flush=True)


def emit_json(document: object, *, compact: bool = False) -> None:
    """Data for machines: one document laid out for reading, or one line of a stream."""
    emit(json.dumps(document, ensure_ascii=False, indent=None if compact else 2))


def say(*lines: str) -> None:
    """Words about the data."""
    print(*lines, sep="\n", file=sys.stderr, flush=True)


class Progress:
    """Where a long command stands: one line that is rewritten on a terminal, one line a change elsewhere."""

    def __init__(self) -> None:
        self._rewrites = is_terminal(sys.stderr)
        self._last = ""

    def show(self, sentence: str, spent: str) -> None:
        """Time gone by is no change: neither `spent` nor the durations in the sentence ("12 s of at most 600 s")."""
        told = _DURATIONS.sub("", sentence)
        if self._rewrites:
            columns = columns_of(sys.stderr) or 80
            sys.stderr.write(f"\r\x1b[K{cut(f'{sentence} ({spent})', columns - 1)}")
            sys.stderr.flush()
        elif told != self._last:
            say(sentence)
        self._last = told

    def clear(self) -> None:
        """Give the line back."""
        if self._rewrites and self._last:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._last = ""


class Redrawn:
    """A picture on a terminal that is drawn over again; what does not fit is counted, the last one stays."""

    def __enter__(self) -> Redrawn:
        sys.stdout.write("\x1b[?25l\x1b[2J")
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.write("\x1b[?25h\n")
        sys.stdout.flush()

    def draw(self, lines: Sequence[str]) -> None:
        """Long lines wrap and take more than one row; were there too many, the terminal would scroll."""
        columns, rows = _size(sys.stdout)
        ends = list(accumulate(max(-(-width(_ESCAPES.sub("", line)) // columns), 1) for line in lines))
        if ends and ends[-1] >= rows:
            fit = sum(end < rows - 1 for end in ends)
            lines = [*lines[:fit], f"… {len(lines) - fit} more lines"]
        sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        sys.stdout.flush()
