"""What keepers have written down of their instances, and what the kernel says of the processes they name."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hasupervisor.config.values import masked_words
from hasupervisor.runtimes import keeper

T = TypeVar("T")

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
    bind: str | None = None  # None: a release before did not write it down
    log_file: Path | None = None  # as bind

    @property
    def runtime_id(self) -> str:
        return f"{self.process.pid}@{self.process.start}"

    @property
    def command_line(self) -> str:
        """For people: what looks like a secret is masked."""
        return shlex.join(masked_words(self.command))


def read(path: Path) -> Record | None:
    """The record in a file; None when there is none. Raises OSError, and ValueError when it is not a record.

    What a release before did not write has a default, and what a later one adds is not looked at: no release of the
    daemon may stumble over what another one has started.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    try:
        keeps = found.get("keeper") or {}
        return Record(
            name=str(found["name"]),
            port=int(found["port"]),
            gpus=tuple(str(gpu) for gpu in found.get("gpus") or ()),
            command=tuple(str(word) for word in found.get("command") or ()),
            process=Identity(int(found["pid"]), _maybe(int, found["start"]), str(found["boot"])),
            keeper=Identity(int(keeps.get("pid", 0)), _maybe(int, keeps.get("start")), str(found["boot"])),
            started_wall=float(found.get("started_wall") or 0.0),
            log_from=int(found.get("log_from") or 0),
            exit_code=_maybe(int, found.get("exit_code")),
            oom_killed=bool(found.get("oom_killed")),
            ended_wall=_maybe(float, found.get("ended_wall")),
            tail=tuple(str(line) for line in found.get("tail") or ()),
            bind=_maybe(str, found.get("bind")),
            log_file=_maybe(Path, found.get("log_file")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a record: {error}") from error


def _maybe(kind: Callable[[Any], T], value: object) -> T | None:
    return None if value is None else kind(value)


def read_all(folder: Path) -> list[Record]:
    """Every record in the folder that can be read, by name."""
    records = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            record = read(path)
            if record is not None and record.name == path.stem:
                records.append(record)
    return records


# --- processes --------------------------------------------------------------------------------------------------------


def is_alive(process: Identity) -> bool:
    """Whether that very process runs, and is more than a zombie."""
    fields = keeper.stat_fields(process.pid)
    return fields is not None and process.is_of(fields) and fields[0] not in GONE_STATES


def command_of(pid: int) -> list[str]:
    """The words of a process's command line; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def environment(pid: int) -> dict[str, str]:
    """What a process was started with; empty where it is gone or another user's."""
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs) if name}


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
    if process.start is None:
        return None  # it had ended before it could be asked
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Checked after it was opened: from here on the pid cannot become another's.
    if not process.is_of(keeper.stat_fields(process.pid)):
        os.close(descriptor)
        return None
    return descriptor
