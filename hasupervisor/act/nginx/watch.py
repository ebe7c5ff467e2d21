"""Notices, without polling hard, that nginx's master has ended and that a file of its configuration has changed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from hasupervisor.act.nginx import process

QUICK_S = 10.0


class MasterWatch:
    """Follows one master: the kernel says at once when it ends."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.pid: int | None = None
        self.quick_deaths = 0  # in a row, of masters that were followed for less than QUICK_S
        self._began = 0.0
        self._on_end = on_end
        self._descriptor: int | None = None

    def follow(self, pid: int) -> None:
        """Begins to watch; an end that was before is told as one that comes."""
        self.forget()
        self.pid, self._began = pid, time.monotonic()
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self._ended()
        except OSError:
            return  # a kernel without pidfds (before 5.3): `check` has to do
        else:
            asyncio.get_running_loop().add_reader(self._descriptor, self._ended)

    def check(self) -> None:
        """Looks whether the master is still there, where the kernel does not tell."""
        if self.pid is not None and process.title(self.pid) == "":
            self._ended()

    def forget(self) -> None:
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        self.pid = None

    def _ended(self) -> None:
        self.quick_deaths = self.quick_deaths + 1 if time.monotonic() - self._began < QUICK_S else 0
        self.forget()
        self._on_end()


class FileWatch:
    """Says whether any of some files or folders has changed since it was last asked."""

    def __init__(self) -> None:
        self._signatures: dict[Path, tuple[int, int, int] | None] | None = None

    def changed(self, paths: Iterable[Path]) -> bool:
        """A few microseconds a path. The first time there is nothing to compare with: not changed."""
        now = {path: _signature(path) for path in paths}
        before, self._signatures = self._signatures, now
        return before is not None and before != now


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
