"""What the scribe's thread does: opens the file when it is needed and is not open, and never shares it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hasupervisor.decide.autoscale.facts import Sample
from hasupervisor.memory.database import Batch, Memory, MemoryLost, MemoryTrouble, Remembered, read_copy
from hasupervisor.memory.rows import Entry, Moment


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch."""

    defects: tuple[str, ...]
    shift: int = 0  # by how much the lines had to be renumbered
    mishap: str | None = None  # what opening the file again has brought to light


class File:
    """Synchronous, for the scribe's one thread."""

    def __init__(self, path: Path, opener: Callable[[Path], Memory]) -> None:
        self._path, self._opener = path, opener
        self._memory: Memory | None = None

    def load(self, moment: Moment) -> tuple[Remembered, int, MemoryTrouble | None]:
        try:
            memory = self._opener(self._path)
            remembered, last_id = memory.load(moment), memory.last_id()
        except MemoryTrouble as trouble:
            remembered, last_id = read_copy(self._path, moment) if self._path.exists() else (Remembered(), 0)
            return remembered, last_id, trouble
        self._memory = memory
        return remembered, last_id, None

    def write(self, batch: Batch) -> Written:
        shift, mishap = 0, None
        if self._memory is None:
            self._memory = self._opener(self._path)
            mishap = self._memory.mishap
            first = batch.entries[0].id if batch.entries else 1
            shift = max(0, self._memory.last_id() + 1 - first)
            entries = tuple(replace(entry, id=entry.id + shift) for entry in batch.entries)
            batch = replace(batch, entries=entries)
        try:
            return Written(self._memory.write(batch), shift, mishap)
        except MemoryLost:
            with contextlib.suppress(MemoryTrouble):  # it is of no use any more, however it ends
                self.close()
            raise

    def history(self, *, n: int, since_wall: float | None, subject: str | None, after_id: int | None) -> list[Entry]:
        if self._memory is None:
            return []
        return self._memory.history(n=n, since_wall=since_wall, subject=subject, after_id=after_id)

    def samples(self, since_wall: float, moment: Moment) -> list[Sample]:
        return self._memory.samples(since_wall, moment) if self._memory is not None else []

    def close(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
