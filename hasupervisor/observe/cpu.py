"""Whether an instance's processes use the CPU: a witness for work that an opaque instance does not report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")

BUSY = 0.05
"""Share of one core from which on the processes count as working. A stopped or deadlocked server uses none; one that
waits for its GPU spins, and one that is merely idle keeps a timer or two."""

STALE = 5.0
"""Seconds after which a look says nothing about the time in between: what was done then may have been little."""


@dataclass(slots=True)
class _Sample:
    pid: int
    at: float
    ticks: int
    idle_since: float | None = None


class CpuUse:
    """Compares the CPU time of each instance's process tree from look to look; a look costs about 50 us each.

    `is_its(name, pid)` tells whether that process of this host is the instance's: a remote engine's pids are others'.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        is_its: Callable[[str, int], bool] = lambda name, pid: True,
    ) -> None:
        self._clock = clock
        self._is_its = is_its
        self._samples: dict[str, _Sample] = {}

    def look(self, name: str, pid: int | None) -> float | None:
        """Since when the processes under `pid` have used no CPU to speak of; None: they do, or nobody knows."""
        now = self._clock()
        before = self._samples.get(name)
        if before is not None and before.pid == pid and now - before.at < 0.5:
            return before.idle_since  # a tick is 10 ms: less than this says nothing, and a look costs time
        ticks = tree_ticks(pid) if pid is not None and self._is_its(name, pid) else None
        if pid is None or ticks is None:
            self._samples.pop(name, None)
            return None
        if before is None or before.pid != pid or now - before.at > STALE:
            self._samples[name] = _Sample(pid, now, ticks)
            return None
        passed = now - before.at
        # Less than before: one of them has ended, and what it had worked went with it.
        is_busy = ticks < before.ticks or (ticks - before.ticks) / TICKS >= BUSY * passed
        idle_since = None if is_busy else (before.idle_since if before.idle_since is not None else before.at)
        self._samples[name] = _Sample(pid, now, ticks, idle_since)
        return idle_since


def tree_ticks(pid: int, proc: Path = PROC) -> int | None:
    """User and system time of a process and all its descendants, in clock ticks; None: some of it cannot be read."""
    total, children = _ticks(pid, proc), _children(pid, proc)
    if total is None or children is None:
        return None
    for child in children:
        ticks = tree_ticks(child, proc)
        if ticks is None:
            if _lives(child):
                return None
            continue  # it ended meanwhile
        total += ticks
    return total


def _ticks(pid: int, proc: Path) -> int | None:
    try:
        stat = (proc / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name before it may hold anything
    return int(fields[11]) + int(fields[12])


def _children(pid: int, proc: Path) -> list[int] | None:
    """Children of all threads; None where the kernel does not tell (CONFIG_PROC_CHILDREN) or may not be asked."""
    children: list[int] = []
    try:
        threads = list((proc / str(pid) / "task").iterdir())
    except OSError:
        return None
    for thread in threads:
        try:
            children.extend(int(child) for child in (thread / "children").read_bytes().split())
        except (FileNotFoundError, ProcessLookupError):
            if thread.exists():
                return None
            continue  # the thread ended meanwhile
        except OSError:
            return None
    return children


def _lives(pid: int) -> bool:
    """Whether there is such a process, seen or hidden."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
