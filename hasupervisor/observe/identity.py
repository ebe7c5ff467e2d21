"""Whether a pid that the runtime names is that instance's process here, and not another one of the same number."""

from __future__ import annotations

from pathlib import Path

from hasupervisor.observe.deaths import is_process_of
from hasupervisor.observe.owners import containers_in

PROC = Path("/proc")


def is_main_process(pid: int, runtime_id: str, started_at: float | None, proc: Path = PROC) -> bool:
    """By its container's cgroup, or because it started when the instance was started (monotonic).

    False where it cannot be seen: a pid of a remote engine, or of another pid namespace, may be anybody's here.
    """
    try:
        if runtime_id in containers_in((proc / str(pid) / "cgroup").read_text(errors="replace")):
            return True
        return started_at is not None and is_process_of(pid, started_at)
    except OSError:
        return False
