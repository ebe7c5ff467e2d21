"""Runs the daemon's components: the end of an essential one ends the daemon, any other may fail, and that is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from hasupervisor.descriptors import LogThrottle, is_exhausted
from hasupervisor.model import Problem

log = structlog.get_logger(__name__)

GOES_ON = "instances are looked after all the same"


class ComponentExited(Exception):
    """A part that runs as long as the daemon has ended by itself: a defect, and a reason to start anew."""


class OptionalComponents:
    """Parts beside the cycle: metrics, the autoscaler, the pages, the drills."""

    def __init__(self) -> None:
        self._failing: dict[str, str] = {}  # by part: why it failed when it ran last
        self._may_log = LogThrottle()

    def problems(self) -> list[Problem]:
        """What goes wrong in them now, for `status`."""
        return [Problem(part, words, "chatglm-hactl doctor") for part, words in self._failing.items()]

    def missing(self, part: str, words: str) -> None:
        """A part that could not begin; `words` name the next command."""
        self._failing[part] = words
        log.error(words)

    def run(self, part: str, step: Callable[[], None]) -> None:
        """Runs one step of a part, which is tried again after the next cycle."""
        try:
            step()
        except Exception as error:
            self._failed(part, f"the {part} failed: {_words(error)}; {GOES_ON}", error)
        else:
            self._failing.pop(part, None)

    async def keep(self, part: str, running: Coroutine[Any, Any, None], stopping: asyncio.Event) -> None:
        """Runs a part that lasts as long as the daemon. Should it end by itself, the daemon goes on without it."""
        try:
            await running
        except Exception as error:
            self._failed(part, f"the {part} ended: {_words(error)}; {GOES_ON}; systemctl restart chatglm-ha", error)
            await stopping.wait()

    def _failed(self, part: str, words: str, error: Exception) -> None:
        self._failing[part] = words
        if not self._may_log((part, words)):
            return
        if is_exhausted(error):
            log.error(words)
        else:
            log.error(f"BUG: {words}", exc_info=error)


def _words(error: Exception) -> str:
    return str(error.strerror) if is_exhausted(error) else f"{type(error).__name__}: {error}"


async def run_until_stopped(stopping: asyncio.Event, parts: dict[str, Coroutine[Any, Any, None]]) -> None:
    """Runs all parts until `stopping` is set; they are then ended. Raises ComponentExited when one ends before."""
    stop = asyncio.create_task(stopping.wait(), name="stopping")
    tasks = [asyncio.create_task(part, name=name) for name, part in parts.items()]
    try:
        await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in tasks if task.done()]
        if ended and not stopping.is_set():
            error = ended[0].exception()
            log.error(f"BUG: the {ended[0].get_name()} ended by itself", exc_info=error)
            raise ComponentExited(f"the {ended[0].get_name()} ended by itself: {error!r}")
    finally:
        stopping.set()
        for task in (stop, *tasks):
            if task.get_name() not in ("control socket", "pages"):  # those end by themselves, politely
                task.cancel()
        await asyncio.gather(stop, *tasks, return_exceptions=True)
