"""What an operator can be told has gone wrong, with the exit code that says so to a script."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of chatglm-hactl; `check` alone has its own, those of Nagios."""

    DONE = 0
    FAILED = 1
    USAGE = 2  # usage or configuration
    NO_ANSWER = 3
    DENIED = 4
    REFUSED = 5
    NO_SUCH = 6
    STILL_GOING = 7  # timed out here, goes on there
    INTERRUPTED = 130  # Ctrl-C, as shells have it: not 7, which says that a time of one's own choosing ran out
    CLOSED = 141  # whoever read the output has gone, as shells have it


class Failure(Exception):
    """A command that ends without success: one sentence, and where there is one the next command to type.

    `passes` says that it may be over in a moment, so that whoever waits can ask again: a daemon that restarts.
    """

    def __init__(
        self,
        code: Exit,
        sentence: str,
        *,
        details: Sequence[str] = (),
        hint: str | None = None,
        passes: bool = False,
    ) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence
        self.details = tuple(details)
        self.hint = hint
        self.passes = passes

    def lines(self) -> list[str]:
        """What stderr gets, line by line."""
        lines = [f"chatglm-hactl: {self.sentence}", *(f"  {detail}" for detail in self.details)]
        if self.hint:
            lines.append(f"next: {self.hint}")
        return lines
