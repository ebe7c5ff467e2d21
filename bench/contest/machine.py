"""The machine that a benchmark ran on, and how busy it was with other things before it began."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Machine:
    """`load_average` is the one-minute figure at the start of the run."""

    date: str
    processor: str
    cores: int
    memory_gb: float
    system: str
    kernel: str
    python: str
    load_average: float

    @classmethod
    def here(cls) -> Machine:
        return cls(
            date=datetime.now(UTC).date().isoformat(),
            processor=_first("/proc/cpuinfo", "model name") or platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            memory_gb=round(int((_first("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20, 1),
            system=platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
            kernel=platform.release(),
            python=platform.python_version(),
            load_average=round(os.getloadavg()[0], 1),
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        return (
            f"{self.date}: {self.processor}, {self.cores} cores, {self.memory_gb:.0f} GB, {self.system}, "
            f"Linux {self.kernel}, Python {self.python}; load average {self.load_average} before the run"
        )


def _first(path: str, key: str) -> str | None:
    """The value of the first `key : value` line of a file of the kernel's."""
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
