"""nginx's processes as the kernel shows them: its master, its workers, orphans, and who holds a port."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import psutil

from hasupervisor.act.nginx.layout import Layout

_MASTER = "nginx: master process"
_WORKER = "nginx: worker process"
_RETIRING = "shutting down"


def title(pid: int) -> str | None:
    """What the process calls itself; "" when it is gone or a zombie, None when we may not see it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None if alive(pid) else ""
    except PermissionError:
        return None


def alive(pid: int) -> bool:
    """Whether there is such a process, visible or not (a hidden /proc, another user's)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_pid(path: Path) -> int | None:
    """The pid in a pid file; None when there is none, or nothing in it."""
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) > 1 else None


def find_master(layout: Layout) -> int | None:
    """nginx's master: by its pid file, else the one master whose command line names our main file.

    An nginx of our own has to name it, whatever the pid file says: a pid is used again, and another nginx may have it.
    """
    pid = read_pid(layout.pid)
    name = title(pid) if pid is not None else ""
    if name is None and not layout.own:
        return pid  # hidden from us, but there: the pid file is all we can know
    if name and name.startswith(_MASTER) and (not layout.own or _names(name, layout.main)):
        return pid
    masters = {pid: name for pid in psutil.pids() if (name := title(pid)) and _is_master(pid, name)}
    named = [pid for pid, name in masters.items() if _names(name, layout.main)]
    if layout.main_is_default and not named:
        named = [pid for pid, name in masters.items() if " -c " not in name]
    return named[0] if len(named) == 1 else None


def _is_master(pid: int, name: str) -> bool:
    """A new worker bears its master's title for a moment; but it does not lead a session, as a daemon does."""
    try:
        return name.startswith(_MASTER) and os.getsid(pid) == pid
    except OSError:
        return False


def _retired(name: str) -> bool:
    return not name.startswith((_WORKER, _MASTER)) or _RETIRING in name


def _names(title: str, main: Path) -> bool:
    return f" {main} " in f"{title} "


def workers(master: int) -> frozenset[int] | None:
    """The master's workers that take new connections; None when we may not see its children."""
    children = _children(master)
    if children is None:
        return None
    names = {pid: title(pid) for pid in children}
    if any(name is None for name in names.values()):
        return None
    return frozenset(pid for pid, name in names.items() if name and not _retired(name))


def retiring(master: int) -> int:
    """How many of the master's workers only finish what they have; 0 too when we may not see its children."""
    names = (title(pid) for pid in _children(master) or ())
    return sum(1 for name in names if name and name.startswith(_WORKER) and _RETIRING in name)


def retired(pid: int) -> bool:
    """A worker that takes no new connections any more: gone, a zombie, or shutting down."""
    name = title(pid)
    return name is not None and _retired(name)


def orphans(folder: Path) -> frozenset[int]:
    """Workers of our own nginx whose master is dead: they run in our folder and go on serving what they know."""
    found = set()
    for pid in psutil.pids():
        name = title(pid)
        if not name or not name.startswith((_WORKER, _MASTER)) or _is_master(pid, name) or not _runs_in(pid, folder):
            continue
        parent = _parent(pid)
        if parent is None or not _is_master(parent, title(parent) or ""):
            found.add(pid)
    return frozenset(found)


def holders(port: int) -> str:
    """Who listens on a TCP port, for people: "python3 (pid 4711)"; "" when nobody can be named."""
    names = set()
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.laddr.port != port:
                continue
            if connection.pid is None:
                names.add("a program of another user")
                continue
            with contextlib.suppress(psutil.Error):
                names.add(f"{psutil.Process(connection.pid).name()} (pid {connection.pid})")
    return ", ".join(sorted(names))


def _children(master: int) -> list[int] | None:
    try:
        return [int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()]
    except OSError:
        pass  # a kernel without that file: look at every process for its parent
    if title(master) is None:
        return None
    return [pid for pid in psutil.pids() if _parent(pid) == master]


def _parent(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"^PPid:\s*(\d+)", status, re.M)
    return int(found[1]) if found else None


def _runs_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder
    except OSError:
        return False
