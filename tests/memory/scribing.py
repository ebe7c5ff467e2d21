"""A scribe that runs, for the tests of what it keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from hasupervisor.memory import Memory, Remembered, Scribe

NOW, WALL = 100.0, 1_800_000_000.0


@asynccontextmanager
async def scribe_at(
    path: Path, opener: Callable[[Path], Memory] = Memory.open
) -> AsyncIterator[tuple[Scribe, Remembered]]:
    """A scribe that runs, as the daemon has it."""
    scribe = Scribe(path, opener=opener)
    remembered = await scribe.load(NOW, WALL)
    task = asyncio.create_task(scribe.run())
    try:
        yield scribe, remembered
    finally:
        task.cancel()
        await asyncio.wait([task])
        await scribe.close()
