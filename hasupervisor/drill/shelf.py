"""The folder of the drills' sheets, read and written in a thread with a deadline."""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from pathlib import Path
from typing import TypeVar

import structlog

from hasupervisor.drill import sheet
from hasupervisor.drill.sheet import Sheet
from hasupervisor.memory.thread import CallThread
from hasupervisor.report.desk import Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")

PREFIX = "drill-"
KEEP = 50  # sheets; older ones are removed
FILES_S = 5.0


class Shelf:
    """Sheets by their names, "drill-7". Every method raises Unavailable where the disk gives no answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._thread = CallThread("drills")
        self._odd: set[str] = set()  # names whose files have been found to be no sheets

    async def make(self) -> None:
        await self.call(lambda: self.folder.mkdir(mode=0o755, parents=True, exist_ok=True))

    async def next_name(self) -> str:
        numbers = await self.call(lambda: [number_of(name) or 0 for name in self._names()])
        return f"{PREFIX}{max(numbers, default=0) + 1}"

    async def read(self, name: str) -> Sheet | None:
        """None for what is no drill."""
        if number_of(name) is None:
            return None
        return await self.call(lambda: self._read(name))

    async def read_all(self, but: Set[str] = frozenset()) -> list[Sheet]:
        """The newest first, without those in `but`."""

        def read() -> list[Sheet]:
            return [one for name in self._names() if name not in but and (one := self._read(name)) is not None]

        return await self.call(read)

    async def write(self, kept: Sheet) -> None:
        await self.call(lambda: sheet.write(self.folder, kept, lasting=True))

    async def prune(self) -> None:
        """Removes all but the newest."""
        await self.call(self._prune)

    async def call(self, work: Callable[[], T]) -> T:
        """A disk that hangs must not hold up the loop."""
        try:
            return await self._thread.call(work, FILES_S)
        except TimeoutError:
            raise Unavailable(f"{self.folder} does not answer within {FILES_S:g} s", f"ls {self.folder}") from None
        except OSError as error:
            where = error.filename or self.folder
            raise Unavailable(f"{where}: {error.strerror}", f"ls -ld {self.folder}") from error

    def close(self) -> None:
        self._thread.end()

    def _names(self) -> list[str]:
        found = (path.name.removesuffix(sheet.SUFFIX) for path in self.folder.glob(f"{PREFIX}*{sheet.SUFFIX}"))
        numbered = [(number, name) for name in found if (number := number_of(name)) is not None]
        return [name for _, name in sorted(numbered, reverse=True)]

    def _read(self, name: str) -> Sheet | None:
        try:
            return sheet.read(self.folder, name)
        except ValueError as error:
            if name not in self._odd:
                log.warning("a drill's sheet cannot be understood", path=str(self.path_of(name)), why=str(error))
            self._odd.add(name)
            return None

    def _prune(self) -> None:
        for name in self._names()[KEEP:]:
            self.path_of(name).unlink(missing_ok=True)

    def path_of(self, name: str) -> Path:
        return sheet.path_of(self.folder, name)


def number_of(name: str) -> int | None:
    """7 of "drill-7"; None for anything else."""
    found = re.fullmatch(rf"{PREFIX}([0-9]{{1,9}})", name)
    return int(found[1]) if found else None
