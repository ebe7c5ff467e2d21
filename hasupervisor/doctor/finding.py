"""What an examination found: a thing, how it is, in one sentence, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"  # it works; something will cost, or could not be seen
    FAIL = "fail"  # instances or users are, or will be, without it


@dataclass(frozen=True, slots=True)
class Finding:
    check: str  # one word: docker, nginx, ports, ...
    level: Level
    sentence: str
    hint: str | None = None  # the next command, or what to write where

    def document(self) -> dict[str, str | None]:
        return {"check": self.check, "level": self.level.value, "sentence": self.sentence, "hint": self.hint}


def ok(check: str, sentence: str) -> Finding:
    return Finding(check, Level.OK, sentence)


def warn(check: str, sentence: str, hint: str) -> Finding:
    return Finding(check, Level.WARN, sentence, hint)


def fail(check: str, sentence: str, hint: str) -> Finding:
    return Finding(check, Level.FAIL, sentence, hint)
