"""Which instance a process belongs to: of a container by its cgroup, of a plain process by its ancestors.

Not every process can be seen: /proc may hide those of other users (hidepid, ProtectProc), and the pids that the driver
names are the host's, which mean others, or nobody, to a daemon in a pid namespace of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path

from hasupervisor.model import Fact

PROC = Path("/proc")
GENERATIONS = 32  # an instance's worker is a child or grandchild
HOSTS_PIDS = 0xEFFFFFFC
"""The inode of the host's own pid namespace: PROC_PID_INIT_INO of linux/proc_ns.h."""
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


class Sight(Enum):
    """What can be said of a process of which only the pid is known."""

    SEEN = "seen"
    HIDDEN = "hidden"  # it lives, and nothing else is told of it
    GONE = "gone"
    UNKNOWN = "unknown"  # its pid is the host's and we count differently


class Owners:
    """Remembers whose the processes on the cards are: the one that a fault is about may be gone when it is read of."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self.comparable = _has_the_hosts_pids(proc)  # the driver's pids mean the same here
        self._known: dict[int, str] = {}

    def learn(self, pids: Iterable[int], facts: Sequence[Fact]) -> dict[int, str]:
        """Looks up the processes on the cards; forgets all others. Returns pid -> instance, foreign ones left out."""
        found = {pid: self.of(pid, facts) for pid in pids}
        self._known = {pid: name for pid, name in found.items() if name is not None}
        return dict(self._known)

    def of(self, pid: int, facts: Sequence[Fact]) -> str | None:
        """The instance of that process; None: nobody's of ours, cannot be seen, or was gone before anybody asked."""
        if self.sight(pid) is Sight.SEEN:
            return self._look(pid, facts)
        if self.sight(pid) is Sight.GONE:
            return self._known.get(pid)  # the driver may list it for a while yet
        # The runtime's own word, where its pids are the host's as well: those of containers always are.
        mains = (fact for fact in facts if fact.pid == pid)
        name = next((f.name for f in mains if self.comparable or _CONTAINER.fullmatch(f.runtime_id)), None)
        return name or self._known.get(pid)

    def sight(self, pid: int) -> Sight:
        """Whether that process of the host lives, and can be seen. A process that is only hidden is never GONE."""
        if not self.comparable:
            return Sight.UNKNOWN
        if (self._proc / str(pid)).exists():
            return Sight.SEEN
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return Sight.GONE
        except PermissionError:
            return Sight.HIDDEN
        except OverflowError:  # no pid at all
            return Sight.GONE
        return Sight.HIDDEN

    def _look(self, pid: int, facts: Sequence[Fact]) -> str | None:
        containers = containers_in(self._text(pid, "cgroup"))
        for fact in facts:
            if fact.runtime_id in containers:
                return fact.name
        mains = {fact.pid: fact.name for fact in facts if fact.pid is not None}
        for _ in range(GENERATIONS):
            if pid in mains:
                return mains[pid]
            fields = self._text(pid, "stat").rpartition(")")[2].split()
            if len(fields) < 2 or int(fields[1]) <= 1:
                return None
            pid = int(fields[1])
        return None

    def _text(self, pid: int, name: str) -> str:
        try:
            return (self._proc / str(pid) / name).read_text()
        except OSError:
            return ""  # gone


def _has_the_hosts_pids(proc: Path) -> bool:
    try:
        return (proc / "self/ns/pid").stat().st_ino == HOSTS_PIDS
    except OSError:
        return False


def containers_in(cgroup: str) -> frozenset[str]:
    """Container ids in the text of /proc/<pid>/cgroup: docker/<id> (v1), docker-<id>.scope (systemd), /<id> (v2)."""
    return frozenset(_CONTAINER.findall(cgroup))
