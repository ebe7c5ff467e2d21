"""Asks every running instance how it is, each in a task of its own, and keeps what was found out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from hasupervisor.model import Fact, Phase, ProbeView
from hasupervisor.observe.watch import ProbeSettings, Surroundings, Watch

log = structlog.get_logger(__name__)

__all__ = ["ProbeSettings", "Probes"]

MEMORABLE = 5.0  # seconds for which trouble of our own is told after it was met


@dataclass(slots=True)
class _Followed:
    watch: Watch
    task: asyncio.Task[None]


class Probes:
    """The health questions (layers 1 and 2) and synthetic prompts (layer 3) of all instances.

    `on_change` is called, in the event loop, when something was found out that a decision may hang on. `idle(name)`
    tells whether nothing of users is in flight there (None: nobody knows): periodic prompts go to idle instances only,
    the first one of a life also to one of which nobody knows, one that was asked for by `ask` to any.
    """

    def __init__(
        self,
        settings: ProbeSettings,
        on_change: Callable[[], None],
        *,
        idle: Callable[[str], bool | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.discarded = 0  # results thrown away because the failure was ours
        self._discarded_last: tuple[float, str] | None = None  # when, and why
        self._settings = settings
        self._around = Surroundings(clock, idle, on_change, self._discard)
        self._followed: dict[str, _Followed] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def follow(self, facts: Sequence[Fact]) -> None:
        """Tells what runs, every cycle. A new runtime_id starts from nothing; what does not run is not asked."""
        running = {fact.name: fact for fact in facts if fact.phase is Phase.RUNNING}
        for name in self._followed.keys() - running.keys():
            self._drop(name)
        for name, fact in running.items():
            followed = self._followed.get(name)
            if followed is None or followed.watch.view.runtime_id != fact.runtime_id:
                self._drop(name)
                self._begin(Watch(name, fact.address, self._settings, self._around, ProbeView(fact.runtime_id)))
            elif followed.watch.address != fact.address or followed.task.done():
                if followed.task.done():
                    followed.watch.lose("its watch ended")
                self._drop(name)
                followed.watch.address = fact.address
                self._begin(followed.watch)

    def views(self) -> dict[str, ProbeView]:
        """What is known of each running instance, by name."""
        return {name: followed.watch.view for name, followed in self._followed.items()}

    def ask(self, name: str) -> None:
        """Wants a synthetic prompt of that instance soon: once it answers health questions, at most one a second."""
        if (followed := self._followed.get(name)) is not None:
            followed.watch.ask()

    def hurry(self) -> None:
        """Wants the next health question of everybody now; at most ten a second of each."""
        for followed in self._followed.values():
            followed.watch.hurry()

    def trouble(self) -> str | None:
        """Why questions cannot be put, in words, while that is so; None: all is well."""
        if self._discarded_last is None:
            return None
        at, why = self._discarded_last
        lately = max(MEMORABLE, 2 * self._settings.interval)
        return f"{why} ({self.discarded} results thrown away so far)" if self._around.clock() - at <= lately else None

    def reconfigure(self, settings: ProbeSettings) -> None:
        """Other settings from now on; what is known stays."""
        if settings == self._settings:
            return
        self._settings = settings
        for name, followed in list(self._followed.items()):
            self._drop(name)
            followed.watch.reconfigure(settings)
            self._begin(followed.watch)

    async def close(self) -> None:
        """Ends all questions."""
        for name in list(self._followed):
            self._drop(name)
        await asyncio.gather(*self._ending, return_exceptions=True)  # whoever failed has said so in _ended

    def _begin(self, watch: Watch) -> None:
        task = asyncio.get_running_loop().create_task(watch.run(), name=f"probe {watch.name}")
        task.add_done_callback(self._ended)
        self._followed[watch.name] = _Followed(watch, task)

    def _drop(self, name: str) -> None:
        followed = self._followed.pop(name, None)
        if followed is not None and not followed.task.done():
            self._ending.add(followed.task)
            followed.task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(f"BUG: the {task.get_name()} ended; the next cycle starts it again", exc_info=error)

    def _discard(self, name: str, why: str) -> None:
        self.discarded += 1
        self._discarded_last = (self._around.clock(), f"{name} could not be asked: {why}")
