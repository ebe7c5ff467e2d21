"""Sees the end of processes in the moment it happens, by descriptors that the kernel makes readable."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping

from hasupervisor.runtimes.process_records import Identity, open_pidfd, pidfd


async def ends_within(process: Identity, seconds: float) -> bool:
    """Whether that very process ends within so many seconds, or has already."""
    loop = asyncio.get_running_loop()
    with pidfd(process) as descriptor:
        if descriptor is None:
            return True
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(descriptor)
    return True


class Deaths:
    """The names of watched processes, each as it ends."""

    def __init__(self) -> None:
        self._watched: dict[str, int] = {}  # runtime_id -> pidfd
        self._listeners: set[asyncio.Queue[str | None]] = set()

    def watch(self, alive: Mapping[str, tuple[str, Identity]]) -> None:
        """From now on these are watched (by runtime_id: name and process), and no others."""
        for runtime_id in self._watched.keys() - alive.keys():
            self._forget(runtime_id)
        for runtime_id in alive.keys() - self._watched.keys():
            name, process = alive[runtime_id]
            descriptor = open_pidfd(process)
            if descriptor is None:  # it has ended since it was listed
                self.tell(name)
                continue
            self._watched[runtime_id] = descriptor
            asyncio.get_running_loop().add_reader(descriptor, self._ended, runtime_id, name)

    def tell(self, name: str) -> None:
        """Something happened to that instance."""
        for listener in self._listeners:
            listener.put_nowait(name)

    async def names(self) -> AsyncGenerator[str, None]:
        """Until `close`."""
        listener: asyncio.Queue[str | None] = asyncio.Queue()
        self._listeners.add(listener)
        try:
            while (name := await listener.get()) is not None:
                yield name
        finally:
            self._listeners.discard(listener)

    def close(self) -> None:
        for runtime_id in list(self._watched):
            self._forget(runtime_id)
        for listener in self._listeners:
            listener.put_nowait(None)

    def _ended(self, runtime_id: str, name: str) -> None:
        self._forget(runtime_id)
        self.tell(name)

    def _forget(self, runtime_id: str) -> None:
        descriptor = self._watched.pop(runtime_id)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
