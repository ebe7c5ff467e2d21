"""Which instance a process belongs to: of a container by its cgroup, of a plain process by its ancestors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hasupervisor.model import Fact

PROC = Path("/proc")
GENERATIONS = 32  # an instance's worker is a child or grandchild
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


class Owners:
    """Remembers whose the processes on the cards are: the one that a fault is about may be gone when it is read of."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._known: dict[int, str] = {}

    def learn(self, pids: Iterable[int], facts: Sequence[Fact]) -> dict[int, str]:
        """Looks up the processes on the cards; forgets all others. Returns pid -> instance, foreign ones left out."""
        found = {pid: self.of(pid, facts) for pid in pids}
        self._known = {pid: name for pid, name in found.items() if name is not None}
        return dict(self._known)

    def of(self, pid: int, facts: Sequence[Fact]) -> str | None:
        """The instance of that process; None: nobody's of ours, or it was gone before anybody asked."""
        if (self._proc / str(pid)).exists():
            return self._look(pid, facts)
        return self._known.get(pid)  # the driver may list it for a while yet

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


def containers_in(cgroup: str) -> frozenset[str]:
    """Container ids in the text of /proc/<pid>/cgroup: docker/<id> (v1), docker-<id>.scope (systemd), /<id> (v2)."""
    return frozenset(_CONTAINER.findall(cgroup))
