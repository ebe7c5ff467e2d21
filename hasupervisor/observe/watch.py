"""The watch over one incarnation of an instance: its health questions, its synthetic prompts, its progress counter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from hasupervisor.model import Address, Miss, ProbeView, Said
from hasupervisor.observe import evidence
from hasupervisor.observe.answers import Dialect, Health, counter_value, read_health
from hasupervisor.observe.exchange import Missed, NotAsked, Question, exchange
from hasupervisor.observe.prompts import Prompter

log = structlog.get_logger(__name__)

HURRIED = 0.1  # seconds between two questions at least, however many wait for the answer
LATE = 0.3  # seconds at least that an answer takes before it is called late
TURN = 0.05  # seconds in which an answer that is here already is read, however late we are ourselves
FAST = 0.5  # seconds between questions to an instance that is on its way up, or down for longer
RETRY = 0.2  # seconds after a quick failure (refused, reset, 500): it may be over in a moment
RETRIES = 3  # quick ones, then FAST
PROMPT_GAP = 1.0  # seconds between two prompts at least
FRESH = 3.0  # times interval and timeout: as old a report of its work may be
METRICS_LIMIT = 4 * 1024 * 1024  # bytes; vLLM's page is about 200 kB


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """What is asked, and how often; the names are those of the configuration's [health] (CONTRACT 2)."""

    path: str = "/health"
    interval: float = 2.0
    timeout: float = 2.0
    inference_interval: float = 30.0
    inference_timeout: float = 20.0
    prompt: str = "你好"
    dialect: Dialect = Dialect.AUTO
    progress_metric: str = ""


class Discards(Protocol):
    """Is told of every question that could not be put, or whose answer we were too late for."""

    def __call__(self, name: str, why: str) -> None: ...


class _Loses(Protocol):
    """What is left of a view after a part of the watch broke, for such a reason, at such a time."""

    def __call__(self, view: ProbeView, why: str, now: float, /) -> ProbeView: ...


@dataclass(slots=True)
class Surroundings:
    """What a watch is told by, and tells, the outside."""

    clock: Callable[[], float]
    idle: Callable[[str], bool | None]  # True: nothing of users in flight; None: nobody knows
    on_change: Callable[[], None]
    discarded: Discards


class Watch:
    """Watches one incarnation while `run` runs; `view` is what is known so far and outlives a pause of the watch."""

    def __init__(
        self, name: str, address: Address, settings: ProbeSettings, around: Surroundings, view: ProbeView
    ) -> None:
        self.name = name
        self.address = address
        self.view = view
        self._settings = settings
        self._around = around
        self._prompter = Prompter(settings.dialect)
        self._asked = False  # somebody wants a prompt soon
        self._nudge = asyncio.Event()  # a prompt may be due earlier than it seemed
        self._hurried = asyncio.Event()  # somebody waits for the next health question
        self._tell = False  # and its answer is news, whatever it says
        self._prompt_over: float | None = None  # when the last prompt ended, counted or not
        self._usual = 0.0  # seconds that the last answer took
        self._counter: float | None = None
        self._counter_missing = False
        self._told_locked = False
        self._broke_by: set[str] = set()  # told already

    def ask(self) -> None:
        """A prompt is wanted as soon as the instance answers its health questions, idle or not."""
        if not self._asked:
            self._asked = True
            self._nudge.set()

    def hurry(self) -> None:
        """Wants the next health question now, and its answer told: requests wait for somebody who is proven anew."""
        self._hurried.set()
        self._tell = True

    def lose(self, why: str) -> None:
        """Nothing is known any more, for that reason."""
        self._now(evidence.lost(self.view, why, self._around.clock()))

    def reconfigure(self, settings: ProbeSettings) -> None:
        """Other settings; `run` has to be begun anew."""
        if settings.dialect is not self._settings.dialect:
            self._prompter = Prompter(settings.dialect)
        if settings.progress_metric != self._settings.progress_metric:
            self._counter = None
        self._settings = settings

    async def run(self) -> None:
        """Watches until cancelled. What breaks is told once, with its cause, and begun again; the rest goes on."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._again_and_again("health question", self._question_for_ever, evidence.lost))
            group.create_task(self._again_and_again("prompt", self._prompt_for_ever, evidence.lost_prompt))
            if self._settings.progress_metric:
                group.create_task(
                    self._again_and_again("progress counter", self._count_for_ever, lambda view, *_: view)
                )

    async def _again_and_again(self, what: str, watch: Callable[[], Awaitable[None]], lost: _Loses) -> None:
        while True:
            try:
                await watch()
            except Exception as error:
                self._told_broken(what, error)
                self._now(lost(self.view, f"the {what} broke: {error!r}", self._around.clock()))
                await asyncio.sleep(FAST)

    def _told_broken(self, what: str, error: Exception) -> None:
        why = f"the {what} broke: {error!r}"
        self._around.discarded(self.name, why)
        if why not in self._broke_by:
            self._broke_by.add(why)
            log.error(
                f"BUG: the {what} of {self.name} broke; it is put again every {FAST:g} s, and this is told once",
                subject=self.name,
                exc_info=error,
            )

    # --- layers 1 and 2: does it answer, is it loaded -----------------------------------------------------------------

    async def _question_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            counted = await self._round()
            took = loop.time() - began
            self._hurried.clear()
            await _either(self._hurried, self._pause(took) if counted else max(0.0, FAST - took))
            await asyncio.sleep(max(0.0, began + HURRIED - loop.time()))

    async def _round(self) -> bool:
        """One question; when it stays without an answer for long, a second one beside it. False: nothing counted.

        The second makes two failures in a row known after interval + timeout and a bit, not after twice the timeout;
        and it cannot be lost to the one connection that went wrong. Only at the first suspicion: an instance whose
        health answer stands in a queue is not to be given more of it.
        """
        asked_at = self._around.clock()
        first = asyncio.ensure_future(self._question())
        asked, pending = [first], {first}
        counted = False
        try:
            if self.view.failures == 0:
                patience = max(0.15 * self._settings.timeout, 2 * self._usual)
                await asyncio.wait(pending, timeout=patience)
                if not first.done():
                    asked.append(asyncio.ensure_future(self._question()))
                    pending.add(asked[-1])
                    done, _ = await asyncio.wait(
                        pending, timeout=max(TURN, LATE - patience), return_when=asyncio.FIRST_COMPLETED
                    )
                    if not done:
                        self._now(evidence.late(self.view, asked_at))
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                results = [task.result() for task in done]
                counted = counted or not all(isinstance(result, NotAsked) for result, _ in results)
                if any(self._take(result, asked_at) for result, asked_at in results):
                    break
            return counted
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)  # what broke has been told by the other one

    async def _question(self) -> tuple[Health | Missed | NotAsked, float]:
        """What came of it, and when it was put."""
        loop = asyncio.get_running_loop()
        began, asked_at = loop.time(), self._around.clock()
        try:
            answer = await exchange(self.address, Question("GET", self._settings.path), self._settings.timeout)
            self._usual = loop.time() - began
            return read_health(answer), asked_at
        except (Missed, NotAsked) as failure:
            return failure, asked_at

    def _take(self, result: Health | Missed | NotAsked, asked_at: float) -> bool:
        """Counts a result; True: it was an answer."""
        now = self._around.clock()
        match result:
            case NotAsked():
                self._around.discarded(self.name, str(result))
                self._now(evidence.unasked(self.view, str(result), now))
                return False
            case Missed():
                self._now(evidence.missed(self.view, result.miss, str(result), now))
                return False
            case Health():
                self._now(evidence.answered(self.view, result, now, asked_at))
                return True

    def _pause(self, took: float) -> float:
        """Seconds until the next round, after one that took `took` seconds."""
        interval = self._settings.interval
        view = self.view
        if view.failures:
            quick = view.miss not in (Miss.SILENT, Miss.CONNECT_TIMEOUT) and view.failures <= RETRIES
            interval = min(interval, RETRY if quick else FAST)
        elif view.said in (None, Said.LOADING):
            interval = min(interval, FAST)
        return max(0.0, interval - took)

    def _now(self, view: ProbeView) -> None:
        answered_before = self._answers()
        before, self.view = self.view, view
        if self._answers() and not answered_before:
            self._nudge.set()
        if self._tell or evidence.news(before, view):
            self._tell = False
            self._around.on_change()

    # --- layer 3: does it work ----------------------------------------------------------------------------------------

    async def _prompt_for_ever(self) -> None:
        while True:
            self._nudge.clear()
            due_in = self._prompt_due_in()
            if due_in is None or due_in > 0:
                await _either(self._nudge, due_in)
                continue
            await self._prompt()
            self._asked = False  # whoever asked meanwhile has this answer
            self._prompt_over = self._around.clock()

    def _answers(self) -> bool:
        return self.view.said is Said.HEALTHY and self.view.failures == 0

    def _prompt_due_in(self) -> float | None:
        """Seconds until a prompt is due; 0: now; None: not before something changes."""
        if not self._answers():
            return None
        since = None if self._prompt_over is None else self._around.clock() - self._prompt_over
        rested = 0.0 if since is None else max(0.0, PROMPT_GAP - since)
        if self._asked:
            return rested
        idle = self._idle()
        if self.view.prompted_at is None:  # coming up: it serves nobody before it has answered one
            return PROMPT_GAP if idle is False else rested
        due = self._settings.inference_interval - since if since is not None else 0.0
        if due > 0:
            return due
        return 0.0 if idle is True and not self._reported() else PROMPT_GAP

    def _reported(self) -> int | None:
        """Requests in it by its own last report, while that is fresh; None: it does not report them."""
        progress, at = self.view.progress, self.view.progress_at
        fresh = FRESH * (self._settings.interval + self._settings.timeout)
        if progress is None or at is None or self._around.clock() - at > fresh:
            return None
        return progress.in_flight + progress.queued

    def _idle(self) -> bool | None:
        """Whether it has nothing to do: by its connections, else by its own report. None: it may be busy."""
        seen, reported = self._around.idle(self.name), self._reported()
        return reported == 0 if seen is None and reported is not None else seen

    def _may_be_busy(self) -> bool:
        """Whether somebody's work may keep the prompt that is out from being answered."""
        seen, reported = self._around.idle(self.name), self._reported()
        if seen is None:
            return reported is None or reported > 1  # the prompt itself is reported too
        return not seen

    async def _prompt(self) -> None:
        settings = self._settings
        try:
            ended = await self._prompter.ask(
                self.address, settings.prompt, settings.inference_timeout, self._may_be_busy
            )
        except NotAsked as why:
            self._around.discarded(self.name, str(why))
            return
        if self._prompter.is_locked and not self._told_locked:
            self._told_locked = True
            log.warning(
                f"{self.name} wants an API key for a prompt, so only its {settings.path} is asked; let the instances "
                "run without a key behind the gateway, and check keys there",
                subject=self.name,
            )
        if not ended.excused:
            self._now(evidence.prompted(self.view, ended.fault, self._around.clock()))

    # --- a progress counter of its own --------------------------------------------------------------------------------

    async def _count_for_ever(self) -> None:
        while True:
            if self._answers() or self.view.failures:
                await self._count()
            await asyncio.sleep(self._settings.interval)

    async def _count(self) -> None:
        name = self._settings.progress_metric
        try:
            answer = await exchange(self.address, Question("GET", "/metrics"), self._settings.timeout, METRICS_LIMIT)
        except (Missed, NotAsked):
            return  # the health questions tell what is wrong; a counter that is not read shows no progress
        value = counter_value(name, answer)
        if value is None:
            self._miss_counter(name, answer.status)
            return
        self._counter_missing = False
        before, self._counter = self._counter, value
        self._now(evidence.counted(self.view, before, value, self._around.clock()))

    def _miss_counter(self, name: str, status: int) -> None:
        if not self._counter_missing:
            self._counter_missing = True
            log.warning(
                f"{self.name}: http://{self.address}/metrics answers {status} and has no {name}; "
                "correct health.progress_metric, then: chatglm-hactl config reload",
                subject=self.name,
            )


async def _either(event: asyncio.Event, timeout: float | None) -> None:
    """Waits for the event or the time, whichever comes first."""
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return
