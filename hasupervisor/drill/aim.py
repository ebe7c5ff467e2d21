"""Whom the signals of a drill go to: that very process, on this very machine, that the daemon may signal."""

from __future__ import annotations

import os
from pathlib import Path

from hasupervisor.act.nginx.layout import find_layout
from hasupervisor.act.nginx.process import find_master
from hasupervisor.act.nginx.settings import NginxSettings, NginxTrouble
from hasupervisor.drill import processes
from hasupervisor.drill.order import Fault
from hasupervisor.model import Judged
from hasupervisor.report.desk import Refused
from hasupervisor.runtimes import process_records
from hasupervisor.runtimes.process_records import Identity

SAME_START_S = 10.0
"""A container's process has been started so near to when its engine says; another machine's pid has not."""


async def at_master(settings: NginxSettings) -> Identity:
    """nginx's master. Raises Refused."""
    try:
        pid = find_master(await find_layout(settings))
    except NginxTrouble as trouble:
        raise Refused(str(trouble), "chatglm-hactl nginx test") from trouble
    if pid is None:
        raise Refused("nginx's master is not found: does it run?", "chatglm-hactl nginx show")
    return _allowed(pid, "nginx's master")


def at_instance(target: Judged, fault: Fault, *, in_container: bool) -> tuple[Identity, bool]:
    """The main process of an instance, and whether its engine has to be asked to signal it. Raises Refused.

    A daemon that is not root may not signal a container's process; dockerd may, but reaches the main one alone.
    """
    name, fact = target.record.name, target.fact
    if fact is None or fact.pid is None:
        raise Refused(f"{name} has no process now: {target.reason}", f"chatglm-hactl explain {name}")
    process = processes.identify(fact.pid)
    if process.start is None:
        raise _ended(name, fact.pid)
    if in_container and not _is_here(process, fact.started_at):
        raise Refused(
            f"pid {fact.pid} here is not {name}: its engine runs on another machine, or in a virtual one",
            "docker info --format '{{.Name}}, {{.OperatingSystem}}'",
        )
    if fault is Fault.SICK:  # no signal: it makes itself sick
        return process, False
    if fault is Fault.KILL and in_container and not _may_signal(fact.pid):
        return process, True
    return _allowed(fact.pid, name), False


def _allowed(pid: int, whose: str) -> Identity:
    process = processes.identify(pid)
    if process.start is None:
        raise _ended(whose, pid)
    if not _may_signal(pid):
        raise Refused(
            f"the daemon may not signal {whose} (pid {pid}): it is another user's", f"ps -o user,cmd -p {pid}"
        )
    return process


def _ended(whose: str, pid: int) -> Refused:
    return Refused(f"{whose} (pid {pid}) has just ended", "chatglm-hactl status")


def _may_signal(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True  # nobody is left whom it could not signal
    except PermissionError:
        return False
    return True


def _is_here(process: Identity, started_at: float | None) -> bool:
    """Whether the pid that an engine names is a container's on this machine: begun then, and not in our file system."""
    began = process_records.started_at(process)
    if began is None or started_at is None or abs(began - started_at) > SAME_START_S:
        return False
    try:
        return Path(f"/proc/{process.pid}/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
    except PermissionError:
        return True  # another user's, whose file system is not shown to us
    except OSError:
        return False
