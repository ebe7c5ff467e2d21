"""One daemon thread that carries out calls in order: a disk that hangs holds up this thread and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

_T = TypeVar("_T")


class CallThread:
    """Not an executor: those are waited for when the interpreter ends, and a hung disk would hold up the exit."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def call(self, work: Callable[[], _T], timeout: float | None) -> _T:
        """`work()`'s result, or what it raised. TimeoutError after `timeout` seconds: it goes on, unheard."""
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._calls.put((work, future))
        async with asyncio.timeout(timeout):
            return await future

    def end(self) -> None:
        """Ends the thread after the calls that it still has."""
        self._calls.put(None)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            work, future = item
            if future.cancelled():
                continue  # whoever asked has stopped waiting
            try:
                settle: Callable[[], None] = partial(future.set_result, work())
            except BaseException as error:
                settle = partial(future.set_exception, error)
            _answer(future, settle)


def _answer(future: asyncio.Future[Any], settle: Callable[[], None]) -> None:
    def unless_gone() -> None:
        if not future.done():
            settle()

    with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile: nobody is there to be told
        future.get_loop().call_soon_threadsafe(unless_gone)
