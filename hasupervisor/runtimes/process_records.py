"""What keepers have written down of their instances, and what the kernel says of the processes they name."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hasupervisor.runtimes import keeper

GONE_STATES = ("Z", "X", "x")
"""Of /proc/PID/stat: the process has ended, whoever has to reap it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A process for good: its pid is given to others later, and all three never."""

    pid: int
    start: int | None  # clock ticks since boot; None: it had ended before it could be asked
    boot: str  # id of the kernel's boot

    def is_of(self, fields: list[str] | None) -> bool:
        """Whether these fields of /proc/PID/stat are this process's; None, of a process that is gone, are nobody's."""
        return fields is not None and int(fields[19]) == self.start and self.boot == keeper.boot_id()


@dataclass(frozen=True, slots=True)
class Record:
    """A keeper's record (keeper.py says what each part is)."""

    name: str
    port: int
    gpus: tuple[str, ...]
    command: tuple[str, ...]
    process: Identity
    keeper: Identity
    started_wall: float
    log_from: int
    exit_code: int | None
    oom_killed: bool
    ended_wall: float | None
    tail: tuple[str, ...]

    @property
    def runtime_id(self) -> str:
        return f"{self.process.pid}@{self.process.start}"

    @property
    def command_line(self) -> str:
        return shlex.join(self.command)


def read(path: Path) -> Record | None:
    """The record in a file; None when there is none. Raises ValueError when it is not a record."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    try:
        return Record(
            name=found["name"],
            port=int(found["port"]),
            gpus=tuple(found["gpus"]),
            command=tuple(found["command"]),
            process=Identity(found["pid"], found["start"], found["boot"]),
            keeper=Identity(found["keeper"]["pid"], found["keeper"]["start"], found["boot"]),
            started_wall=float(found["started_wall"]),
            log_from=int(found["log_from"]),
            exit_code=found["exit_code"],
            oom_killed=bool(found["oom_killed"]),
            ended_wall=found["ended_wall"],
            tail=tuple(found["tail"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a record: {error}") from error


def read_all(folder: Path) -> list[Record]:
    """Every record in the folder, by name. Raises OSError, and ValueError that names the file."""
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = read(path)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if record is not None:
            records.append(record)
    return records


# --- processes --------------------------------------------------------------------------------------------------------


def is_alive(process: Identity) -> bool:
    """Whether that very process runs, and is more than a zombie."""
    fields = keeper.stat_fields(process.pid)
    return fields is not None and process.is_of(fields) and fields[0] not in GONE_STATES


def started_at(process: Identity) -> float | None:
    """When a process of this boot was started, monotonic seconds; None for one of an earlier boot."""
    if process.start is None or process.boot != keeper.boot_id():
        return None
    since_boot = process.start / os.sysconf("SC_CLK_TCK")  # on the clock that counts suspended time too
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)


def session_of(record: Record) -> list[int]:
    """Pids of the living processes in the instance's session, itself included: its own, whoever forked them.

    The kernel gives the pid to nobody else while its session has a member; a stranger with that pid means that there is
    none left.
    """
    leader = keeper.stat_fields(record.process.pid)
    if record.process.boot != keeper.boot_id() or (leader is not None and not record.process.is_of(leader)):
        return []
    members = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        fields = keeper.stat_fields(pid)
        if fields is not None and int(fields[3]) == record.process.pid and fields[0] not in GONE_STATES:
            members.append(pid)
    return members


def signal_process(process: Identity, number: signal.Signals) -> None:
    """Sends a signal to that very process, or to nobody when it has ended."""
    with pidfd(process) as descriptor:
        if descriptor is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)


def kill_session(record: Record) -> None:
    """SIGKILL to all that is left of an instance: process groups made within its session too."""
    for pid in session_of(record):
        signal_process(Identity(pid, keeper.start_ticks(pid), record.process.boot), signal.SIGKILL)


@contextmanager
def pidfd(process: Identity) -> Iterator[int | None]:
    """A descriptor of that very process, readable once it has ended; None when it has."""
    descriptor = open_pidfd(process)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def open_pidfd(process: Identity) -> int | None:
    """As `pidfd`; the caller closes it."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Checked after it was opened: from here on the pid cannot become another's.
    if not process.is_of(keeper.stat_fields(process.pid)):
        os.close(descriptor)
        return None
    return descriptor
