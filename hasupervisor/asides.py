"""Runs what instances do not depend on: it may fail, and then that is its own problem, told, and the rest goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from hasupervisor.descriptors import Seldom, is_exhausted
from hasupervisor.model import Problem

log = structlog.get_logger(__name__)

GOES_ON = "instances are looked after all the same"


class Asides:
    """Parts beside the cycle: metrics, the autoscaler, the pages, the drills."""

    def __init__(self) -> None:
        self._failing: dict[str, str] = {}  # by part: why it failed when it ran last
        self._is_worth_saying = Seldom()

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
        if not self._is_worth_saying((part, words)):
            return
        if is_exhausted(error):
            log.error(words)
        else:
            log.error(f"BUG: {words}", exc_info=error)


def _words(error: Exception) -> str:
    return str(error.strerror) if is_exhausted(error) else f"{type(error).__name__}: {error}"
