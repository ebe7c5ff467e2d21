"""Starts and ends the nginx that the daemon runs itself, which outlives the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from hasupervisor.act.nginx import process
from hasupervisor.act.nginx.files import rotate
from hasupervisor.act.nginx.layout import Layout
from hasupervisor.act.nginx.program import COMMAND_DEADLINE_S, command_line, run, words
from hasupervisor.act.nginx.settings import NginxSettings, NginxTrouble, parse_listen

T = TypeVar("T")

LOG_LIMIT_BYTES = 10 * 1024 * 1024
LOG_KEEP = 5

APPEAR_S = 2.0  # from the end of the starting command until the master shows

# An orphan lets its port go within milliseconds of SIGQUIT, unless it hangs.
ORPHAN_STEPS = ((signal.SIGQUIT, 1.0), (signal.SIGTERM, 0.5), (signal.SIGKILL, 1.0))


async def start(settings: NginxSettings, layout: Layout) -> int:
    """Starts nginx on the files in its folder and returns the master's pid. Raises NginxTrouble in nginx's words."""
    await retire_orphans(settings)
    with contextlib.suppress(OSError):
        layout.pid.unlink()  # of a dead one: the next to be there is the new one's
    ran = await run(command_line(settings), COMMAND_DEADLINE_S, cwd=settings.dir)
    if not ran.ok:
        raise NginxTrouble(f"cannot start nginx: {_with_holder(settings, words(ran.output))}")
    # The command ends when nginx has gone into the background, a moment before there is a pid file and a title.
    await _until(lambda: process.find_master(layout) is not None or _ended(layout), APPEAR_S)
    master = process.find_master(layout)
    if master is None:
        raise NginxTrouble(f"nginx started and ended at once: {layout.error_log} may say why")
    return master


def _ended(layout: Layout) -> bool:
    pid = process.read_pid(layout.pid)
    return pid is not None and process.title(pid) == ""


def _with_holder(settings: NginxSettings, said: str) -> str:
    if "Address already in use" not in said:
        return said
    listen = parse_listen(settings.listen)
    holder = process.holders(listen.port) or "another program"
    return (
        f"{listen.host}:{listen.port} is taken by {holder}; stop it or choose another nginx.listen "
        f"(ss -ltnp 'sport = :{listen.port}')"
    )


async def retire_orphans(settings: NginxSettings) -> None:
    """Makes workers whose master is dead give their port back; what they have in flight they finish."""
    for step, patience in ORPHAN_STEPS:
        waiting = {pid for pid in process.orphans(settings.dir) if not process.retired(pid)}
        if not waiting:
            return
        for pid in waiting:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, step)
        await _until(partial(_all_retired, waiting), patience)


def bound_logs(folder: Path, master: int, limit: int = LOG_LIMIT_BYTES, keep: int = LOG_KEEP) -> None:
    """Moves logs that have grown over `limit` bytes aside and has nginx write to new ones. Raises OSError."""
    moved = [rotate(folder / name, limit, keep) for name in ("access.log", "error.log")]
    if any(moved):
        with contextlib.suppress(ProcessLookupError):
            os.kill(master, signal.SIGUSR1)


async def shutdown(settings: NginxSettings, layout: Layout, patience: float) -> None:
    """SIGQUIT (requests in flight are finished), SIGTERM after `patience` seconds, SIGKILL if even that is ignored.

    Workers whose master is dead are ended as well. Raises NginxTrouble.
    """
    master = process.find_master(layout)
    if master is not None:
        await _end_master(master, patience)
    await retire_orphans(settings)


async def _end_master(master: int, patience: float) -> None:
    for step, seconds in ((signal.SIGQUIT, patience), (signal.SIGTERM, 3.0), (signal.SIGKILL, 1.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(master, step)
        if await _until(lambda: not process.title(master), seconds):
            return
    raise NginxTrouble(f"nginx (pid {master}) does not end, not even by SIGKILL: see ps -o stat,wchan {master}")


def _all_retired(pids: set[int]) -> bool:
    return all(process.retired(pid) for pid in pids)


async def _until(condition: Callable[[], T], patience: float) -> T:
    """Asks until it says something true or `patience` seconds have passed; returns the last answer."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while not (answer := condition()) and loop.time() < deadline:  # noqa: ASYNC110 - /proc tells nobody
        await asyncio.sleep(0.005)
    return answer
