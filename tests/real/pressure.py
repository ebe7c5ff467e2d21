"""A load of POSTs in a thread of its own, while a test does something to the host."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.real.load import LoadResult, post_load

LONGEST_S = 600.0
MORE_S = 60.0


class Pressure:
    """A load that runs; `result` is filled while it does, and final once it has ended."""

    def __init__(self, url: str, rate: float, body: dict[str, Any] | None) -> None:
        self.result = LoadResult()
        self._url, self._rate, self._body = url, rate, body
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        self._thread.start()

    def wait_for_more(self, seconds: float = 1.0) -> None:
        """Waits until as many more have ended as are sent in so many seconds."""
        enough = self.result.outcomes.total() + int(self._rate * seconds)
        deadline = time.monotonic() + MORE_S
        while self.result.outcomes.total() < enough:
            assert time.monotonic() < deadline, f"the load stands still: {self.result}"
            time.sleep(0.01)

    def end(self) -> None:
        """Sends no more, waits for what is under way, and prints what became of it all."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()
        print(f"load of {self._rate:g}/s: {self.result}, by {dict(self.result.answered_by)}")

    def _run(self) -> None:
        load = post_load(self._url, self._rate, LONGEST_S, body=self._body, until=self._end, into=self.result)
        self._loop.run_until_complete(load)


@contextmanager
def pressure(url: str, rate: float = 20.0, *, body: dict[str, Any] | None = None) -> Iterator[Pressure]:
    """`rate` POSTs a second to `url` until the block ends; it begins once the first have been answered."""
    load = Pressure(url, rate, body)
    try:
        load.wait_for_more(0.25)
        yield load
    finally:
        load.end()
