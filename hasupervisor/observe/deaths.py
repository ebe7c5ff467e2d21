"""Tells at once when an instance's process has ended, by pidfd: no runtime has to be asked, or be alive, for that."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from hasupervisor.model import Fact, Phase

log = structlog.get_logger(__name__)

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
APART = 10.0
"""Seconds that a process may have started before or after the runtime says its instance did. More, and it is somebody
else: the pid was used again, or belongs to another pid namespace than ours."""


@dataclass(frozen=True, slots=True)
class Life:
    """One process of one incarnation."""

    runtime_id: str
    pid: int


class Deaths:
    """Watches the processes of instances; `on_death` is called, in the event loop, when one has ended."""

    def __init__(self, on_death: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._on_death = on_death
        self._clock = clock
        self._watched: dict[Life, int] = {}  # -> pidfd
        self._dead: dict[Life, float] = {}  # -> when
        self._complained = False

    def follow(self, facts: Sequence[Fact]) -> None:
        """Tells what the runtime shows; needs a running loop. What cannot be watched is left to the runtime's words."""
        lives = {life: fact for fact in facts if (life := life_of(fact)) is not None}
        for life in self._watched.keys() - lives.keys():
            self._unwatch(life)
        self._dead = {life: at for life, at in self._dead.items() if life in lives}
        for life, fact in lives.items():
            if life not in self._watched and life not in self._dead:
                self._watch(life, fact)

    def ended_at(self, fact: Fact) -> float | None:
        """When the process of that fact was seen to end, whatever the runtime still says; None: it was not."""
        life = life_of(fact)
        return self._dead.get(life) if life is not None else None

    def close(self) -> None:
        """Watches nobody any more."""
        for life in list(self._watched):
            self._unwatch(life)

    def _watch(self, life: Life, fact: Fact) -> None:
        try:
            pidfd = _open(life.pid, fact.started_at)
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning(
                    f"the death of {fact.name} will be noticed later than it could: "
                    f"pid {life.pid} cannot be watched: {error.strerror or error}",
                    subject=fact.name,
                )
            return
        if pidfd is None:
            log.debug(f"pid {life.pid} is not (or no longer) the process of {fact.name}", subject=fact.name)
            return
        self._watched[life] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._died, life)

    def _died(self, life: Life) -> None:
        self._unwatch(life)
        self._dead[life] = self._clock()
        self._on_death()

    def _unwatch(self, life: Life) -> None:
        pidfd = self._watched.pop(life)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)


def life_of(fact: Fact) -> Life | None:
    """The life that a fact shows; None where no process is to be expected, or its pid is not known."""
    if fact.phase not in (Phase.RUNNING, Phase.PAUSED) or fact.pid is None:
        return None
    return Life(fact.runtime_id, fact.pid)


def is_process_of(pid: int, started_at: float) -> bool:
    """Whether a process of that pid is here that started when an instance did (monotonic): it is that instance's."""
    ticks = _started(pid)
    return ticks is not None and abs(_monotonic(ticks) - started_at) <= APART


def _open(pid: int, started_at: float | None) -> int | None:
    """A pidfd of the process that an instance was started as; None when it is gone, or the pid is another's now."""
    before = _started(pid)
    if before is None or (started_at is not None and abs(_monotonic(before) - started_at) > APART):
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if _started(pid) != before:  # it ended, and the number was taken, between the two
        os.close(pidfd)
        return None
    return pidfd


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (field 22 of its stat); None: there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat[stat.rindex(b")") + 2 :].split()[19])  # its name, in parentheses, may hold anything


def _monotonic(ticks: int) -> float:
    """Clock ticks since boot as `time.monotonic()`, which does not count the time that the host was suspended."""
    suspended = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return ticks / CLOCK_TICKS - suspended
