"""Waits for conditions with a deadline, never for a time."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast, overload

T = TypeVar("T")


@overload
async def eventually(
    condition: Callable[[], Awaitable[T | None]], what: str = "", within: float = 10.0, every: float = 0.01
) -> T: ...
@overload
async def eventually(
    condition: Callable[[], T | None], what: str = "", within: float = 10.0, every: float = 0.01
) -> T: ...
async def eventually(
    condition: Callable[[], T | None] | Callable[[], Awaitable[T | None]],
    what: str = "",
    within: float = 10.0,
    every: float = 0.01,
) -> T:
    """Asks `condition` until it says something true, and returns that; fails in words after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        said = condition()
        value = await said if inspect.isawaitable(said) else said
        if value:
            return cast(T, value)
        assert time.monotonic() < deadline, f"not within {within} s: {what or condition}; the last answer was {value!r}"
        await asyncio.sleep(every)


def threads(name: str) -> int:
    """Threads whose name begins so."""
    return sum(thread.name.startswith(name) for thread in threading.enumerate())
