"""Whom the signals of a drill go to: that very process, on this very machine, that the daemon may signal."""

from __future__ import annotations

import os
from pathlib import Path

from hasupervisor.act.nginx.layout import find_layout
from hasupervisor.act.nginx.process import find_master
from hasupervisor.act.nginx.settings import NginxSettings, NginxTrouble
from hasupervisor.drill import processes
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


def at_instance(target: Judged, *, in_container: bool) -> Identity:
    """The main process of an instance. Raises Refused."""
    name, fact = target.record.name, target.fact
    if fact is None or fact.pid is None:
        raise Refused(f"{name} has no process now: {target.reason}", f"chatglm-hactl explain {name}")
    process = _allowed(fact.pid, name)
    if in_container and not _is_here(process, fact.started_at):
        raise Refused(
            f"pid {fact.pid} here is not {name}: its engine runs on another machine, or in a virtual one",
            "docker info --format '{{.Name}}, {{.OperatingSystem}}'",
        )
    return process


def _allowed(pid: int, whose: str) -> Identity:
    process = processes.identify(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        raise Refused(f"{whose} (pid {pid}) has just ended", "chatglm-hactl status") from None
    except PermissionError:
        raise Refused(
            f"the daemon may not signal {whose} (pid {pid}): it is another user's", f"ps -o user,cmd -p {pid}"
        ) from None
    return process


def _is_here(process: Identity, started_at: float | None) -> bool:
    """Whether the pid that an engine names is a container's on this machine: begun then, and not in our file system."""
    began = process_records.started_at(process)
    if began is None or started_at is None or abs(began - started_at) > SAME_START_S:
        return False
    try:
        return Path(f"/proc/{process.pid}/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
    except OSError:
        return False
