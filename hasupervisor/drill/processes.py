"""Stops and continues an instance with everything that it has forked, by pidfds: never somebody else's process."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from hasupervisor.runtimes import keeper, process_records
from hasupervisor.runtimes.process_records import Identity

_PARENT = 1  # of keeper.stat_fields


def identify(pid: int) -> Identity:
    """The process that has this pid now; one without a start if there is none."""
    return Identity(pid, keeper.start_ticks(pid), keeper.boot_id())


def tree(root: Identity) -> list[Identity]:
    """The process and its living descendants, itself first; nothing once it has ended."""
    if not process_records.is_alive(root):
        return []
    children: dict[int, list[int]] = defaultdict(list)
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        fields = keeper.stat_fields(pid)
        if fields is not None and fields[0] not in process_records.GONE_STATES:
            children[int(fields[_PARENT])].append(pid)
    found, due = [root], [root.pid]
    while due:
        below = children[due.pop()]
        found += [identify(pid) for pid in below]
        due += below
    return found


def stop(root: Identity) -> set[Identity]:
    """SIGSTOP to all of it, parents first, again until nothing has been forked meanwhile; returns whom it has stopped.

    A model server may be a shell, an init or a front end before the process that works: what hangs is all of it.
    """
    stopped: set[Identity] = set()
    while fresh := [process for process in tree(root) if process not in stopped]:
        for process in fresh:
            process_records.signal_process(process, signal.SIGSTOP)
        stopped.update(fresh)
    return stopped


def go_on(processes: Iterable[Identity]) -> None:
    """SIGCONT to each of them that still lives; it does nothing to one that is not stopped."""
    for process in processes:
        process_records.signal_process(process, signal.SIGCONT)
