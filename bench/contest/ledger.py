"""What the instances themselves wrote down: who lived when, and how often each request was answered."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Life:
    """One process of an instance, from its start (monotonic seconds)."""

    port: int
    pid: int
    began: float


class Ledger:
    """Reads the file that bench/contest/instance.py writes, and remembers who was harmed on purpose."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._harmed: set[int] = set()

    def lives(self) -> list[Life]:
        """All lives so far, oldest first."""
        return [Life(line["port"], line["pid"], line["at"]) for line in self._lines() if line["what"] == "up"]

    def living(self) -> dict[int, Life]:
        """The process that runs now on each port that has one."""
        return {life.port: life for life in self.lives() if is_alive(life.pid)}

    def listening(self) -> dict[int, Life]:
        """Those of the living who have loaded and accept connections."""
        ready = {line["pid"] for line in self._lines() if line["what"] == "listens"}
        return {port: life for port, life in self.living().items() if life.pid in ready}

    def answered(self) -> Counter[str]:
        """How often each request was answered, by its number."""
        return Counter(line["request"] for line in self._lines() if line["what"] == "answered")

    def harm(self, pid: int) -> None:
        """Whoever ends this process has a reason: a fault was made in it, or the operator asked for its end."""
        self._harmed.add(pid)

    def heal(self, pid: int) -> None:
        """The fault is over and the process lives: it is healthy again."""
        self._harmed.discard(pid)

    def restarts(self) -> int:
        """Lives after the first of each port."""
        lives = self.lives()
        return len(lives) - len({life.port for life in lives})

    def healthy_ended(self) -> list[Life]:
        """Lives that have ended although nothing was wrong with them."""
        return [life for life in self.lives() if not is_alive(life.pid) and life.pid not in self._harmed]

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        whole = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in whole]


def is_alive(pid: int) -> bool:
    """Whether a process runs (or is stopped) under that number; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] != "Z"
