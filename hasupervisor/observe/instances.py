"""Keeps the runtime's list of instances: renewed when something happens; old, not empty, when it cannot be had."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog

from hasupervisor.model import Fact, Phase, RuntimeView
from hasupervisor.observe.deaths import Deaths
from hasupervisor.runtimes.base import Runtime, RuntimeTrouble

log = structlog.get_logger(__name__)

EVERY = 10.0  # seconds between two lists when nothing happens
PING_EVERY = 1.0  # seconds between two pings: with the adapter's deadline, how soon a silent runtime is known as such
AGAIN = 1.0  # seconds until the next try when a list could not be had
DEBOUNCE = 0.02  # seconds: what happens together is one list
GAP = 0.1  # seconds from one list to the next at least
PATIENCE = 30.0  # seconds; the adapter has a shorter deadline of its own, this is for the day it breaks that promise


class InstanceSense:
    """The runtime's view of the instances, corrected by what the kernel knows first: that a process has ended.

    `on_change` is called, in the event loop, when the view changed in more than its age, and after every list that was
    asked for by `refresh`. The time of a list is when it was asked for: it may not know of anything later.
    """

    def __init__(
        self, runtime: Runtime, on_change: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._runtime = runtime
        self._on_change = on_change
        self._clock = clock
        self._deaths = Deaths(self._someone_died, clock)
        self._listed = RuntimeView()  # in the runtime's words
        self._view = RuntimeView()  # corrected
        self._strangers: frozenset[str] = frozenset()
        self._strangers_at: float | None = None
        self._failures = 0  # in a row
        self._told_broken: set[str] = set()  # defects, each told once
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def view(self) -> RuntimeView:
        """What is known now."""
        return self._view

    def strangers(self) -> frozenset[str]:
        """Names that look like ours but are not ours, as of the last full look (every ten seconds)."""
        return self._strangers

    def refresh(self) -> None:
        """Wants a new list now."""
        self._wanted.set()

    def start(self) -> None:
        """Begins to ask; needs a running loop."""
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._list_for_ever(), name="list instances"))
        self._tasks.append(loop.create_task(self._hear_for_ever(), name="hear of instances"))
        self._tasks.append(loop.create_task(self._ping_for_ever(), name="ping the runtime"))

    async def close(self) -> None:
        """Stops asking; what is known stays readable."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._deaths.close()

    # --- the list -----------------------------------------------------------------------------------------------------

    async def _list_for_ever(self) -> None:
        while True:
            wanted = self._wanted.is_set()
            self._wanted.clear()
            await self._list(wanted)
            await asyncio.sleep(GAP)
            try:
                async with asyncio.timeout(AGAIN if self._failures else EVERY):
                    await self._wanted.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(DEBOUNCE)

    async def _list(self, wanted: bool) -> None:
        words = await self._why_not("list", self._take_list(wanted))
        if words is not None:
            self._cannot(words)

    async def _take_list(self, wanted: bool) -> None:
        asked_at = self._clock()
        facts = await self._runtime.list()
        self._failures = 0
        self._deaths.follow(facts)
        self._publish(RuntimeView(tuple(sorted(facts, key=lambda fact: fact.name)), asked_at), wanted)
        if self._strangers_at is None or asked_at - self._strangers_at >= EVERY:
            self._strangers = await self._runtime.strangers()
            self._strangers_at = asked_at

    async def _ping_for_ever(self) -> None:
        """Notices between two lists that the runtime has gone or fallen silent. While it is away, the list tells."""
        while True:
            await asyncio.sleep(PING_EVERY)
            if not self._failures:
                await self._ping()

    async def _ping(self) -> None:
        asked_at = self._clock()
        words = await self._why_not("ping", self._runtime.ping())
        heard_since = self._listed.listed_at is not None and self._listed.listed_at > asked_at
        if words is None or heard_since or self._failures:
            return
        self._cannot(words)
        self.refresh()

    async def _why_not(self, what: str, question: Awaitable[None]) -> str | None:
        """Why the runtime has not answered, in words; None: it has."""
        try:
            async with asyncio.timeout(PATIENCE):
                await question
        except RuntimeTrouble as trouble:
            return str(trouble)
        except TimeoutError:
            return f"the runtime gave no answer in {PATIENCE:g} s"
        except Exception as error:
            if repr(error) not in self._told_broken:
                self._told_broken.add(repr(error))
                log.exception(f"BUG: the runtime's {what} failed; the old list stands, the next one tries again")
            return f"the runtime's {what} failed: {error!r}"
        return None

    def _cannot(self, words: str) -> None:
        self._failures += 1
        if self._failures > 1:
            words = f"{words} ({_ordinal(self._failures)} time)"
        since = self._listed.trouble_since if self._listed.trouble_since is not None else self._clock()
        self._publish(replace(self._listed, trouble=words, trouble_since=since))

    # --- what happens in between --------------------------------------------------------------------------------------

    async def _hear_for_ever(self) -> None:
        while True:
            try:
                async for _ in self._runtime.changes():
                    self.refresh()
                return  # the runtime was closed
            except RuntimeTrouble:
                self.refresh()  # the list will say what the trouble is
            except Exception:
                log.exception("BUG: the runtime's changes failed; they are listened to again")
                self.refresh()
            await asyncio.sleep(AGAIN)

    def _someone_died(self) -> None:
        self.refresh()  # for its exit code
        self._publish(self._listed)

    def _publish(self, listed: RuntimeView, wanted: bool = False) -> None:
        self._listed = listed
        before = self._view
        self._view = replace(listed, facts=tuple(self._corrected(fact) for fact in listed.facts))
        first = before.listed_at is None
        if wanted or first or replace(before, listed_at=None) != replace(self._view, listed_at=None):
            self._tell()

    def _tell(self) -> None:
        """Whoever is told may break; the list goes on all the same."""
        try:
            self._on_change()
        except Exception as error:
            if repr(error) not in self._told_broken:
                self._told_broken.add(repr(error))
                log.exception("BUG: the list of instances was not taken in; this is told once, the next one comes")

    def _corrected(self, fact: Fact) -> Fact:
        died_at = self._deaths.ended_at(fact)
        return fact if died_at is None else replace(fact, phase=Phase.EXITED, died_at=died_at)


def _ordinal(n: int) -> str:
    if 10 <= n % 100 <= 20:
        return f"{n}th"
    return f"{n}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th') }"
