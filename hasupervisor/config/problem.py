"""What is wrong with a configuration: one line for a person, naming place, key and what was meant."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """`str()` is the whole line: `config.toml:9: service.max: 1 is below service.min = 2`."""

    where: str  # "config.toml:9", "environment CHATGLM_HA_SERVICE__MIN", "command line"
    key: str  # "service.max"; empty where no key is to blame
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.text) if part)


class ConfigError(Exception):
    """A configuration that cannot be used, with everything that is wrong with it; `str()` has one line for each."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a value was set, in the order in which problems are shown: the file from top to bottom, then the rest."""

    rank: int
    line: int
    text: str


DEFAULT = Place(3, 0, "default")
COMMAND_LINE = Place(2, 0, "command line")


def variable_place(name: str) -> Place:
    return Place(1, 0, f"environment {name}")


def file_place(file: str, line: int = 0) -> Place:
    return Place(0, line, f"{file}:{line}" if line else file)
