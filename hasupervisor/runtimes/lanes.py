"""Blocking calls in threads, each with a deadline: whoever does not answer holds up nobody but its own lane."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

LIMIT = 4
"""Threads at once in one lane: a step that waits, the inspection of the same instance, and two that were abandoned."""


class Overdue(Exception):
    """A call gave no answer in time; or it was not begun, because all that time earlier ones held its lane."""


class Lanes:
    """Calls by lane, one lane for each instance and one for the engine.

    A thread belongs to one call and ends with it, so an instance at rest costs none. A call that misses its deadline is
    abandoned: its thread goes on until the library gives up, and holds its place in the lane until then; whoever finds
    the lane full waits for a place, within its own deadline. So one that hangs costs at most LIMIT threads and holds up
    nobody in another lane. The threads are daemons: the process can exit while one of them hangs, which a thread of
    concurrent.futures would prevent.
    """

    def __init__(self) -> None:
        self._places: dict[str, asyncio.Semaphore] = {}

    async def call(self, lane: str, function: Callable[[], T], deadline: float) -> T:
        """What `function` returns or raises. Raises Overdue after `deadline` seconds, OSError without a thread."""
        places = self._places.setdefault(lane, asyncio.Semaphore(LIMIT))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: Callable[[asyncio.Future[T]], None]) -> None:
            places.release()
            if not future.done():  # else nobody waits for it any more: it was overdue or cancelled
                result(future)

        try:
            async with asyncio.timeout(deadline) as limit:
                await places.acquire()
                try:
                    threading.Thread(
                        target=_work, args=(function, loop, settle), name=f"lane {lane}", daemon=True
                    ).start()
                except RuntimeError as error:  # the host has no more threads: the place is free all the same
                    places.release()
                    raise OSError(errno.EAGAIN, str(error)) from error
                return await future
        except TimeoutError:
            if not limit.expired():
                raise  # the function's own
            raise Overdue(f"no answer in {deadline:g} s") from None


def _work(
    function: Callable[[], T],
    loop: asyncio.AbstractEventLoop,
    settle: Callable[[Callable[[asyncio.Future[T]], None]], None],
) -> None:
    """The body of a thread: runs `function` and carries its outcome to the loop."""
    try:
        value = function()
    except BaseException as error:
        failure = error
        _call_soon(loop, lambda: settle(lambda future: future.set_exception(failure)))
    else:
        _call_soon(loop, lambda: settle(lambda future: future.set_result(value)))


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> bool:
    """Runs `callback` in the loop; False when the loop is closed already: the program ends, nobody waits any more."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return False
    return True


class Feed(Generic[T]):
    """Items of a blocking iteration that runs in a thread of its own, for one asynchronous consumer.

    `produce(feed)` runs in the thread and calls `feed.emit(item)`; when that returns False the consumer has left.
    `interrupt` is called in the loop then, to wake a thread that blocks in a read.
    """

    def __init__(
        self, name: str, produce: Callable[[Feed[T]], None], interrupt: Callable[[], None], ahead: int = 1000
    ) -> None:
        self._produce, self._interrupt = produce, interrupt
        self._name = name
        self._room = threading.Semaphore(ahead)  # a slow consumer slows the producer; it does not fill the memory
        self._queue: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.left = threading.Event()

    def emit(self, item: T) -> bool:
        """From the thread: hands an item over, waits while too many are waiting. False: stop, nobody listens."""
        self._room.acquire()
        return not self.left.is_set() and self._post((item,))

    def end(self) -> None:
        """From the loop: the consumer's iteration ends."""
        self._queue.put_nowait(None)

    async def items(self) -> AsyncGenerator[T, None]:
        """The items, until the producer ends (or raises: raised here too) or `end` is called."""
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name=self._name, daemon=True).start()
        try:
            while (item := await self._queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item[0]
                self._room.release()
        finally:
            self.left.set()
            self._room.release()
            self._interrupt()

    def _run(self) -> None:
        try:
            self._produce(self)
        except BaseException as error:
            self._post(error)
        else:
            self._post(None)

    def _post(self, item: tuple[T] | BaseException | None) -> bool:
        assert self._loop is not None
        queue = self._queue
        return _call_soon(self._loop, lambda: queue.put_nowait(item))
