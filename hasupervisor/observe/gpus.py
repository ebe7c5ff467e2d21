"""The NVML sense: the GPUs' figures and troubles, from a process that is replaced whenever it hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog

from hasupervisor.model.gpu import DriverState, DriverView, Source, Xid
from hasupervisor.observe.gpu_cards import Card, Cards
from hasupervisor.observe.gpu_process import Ended, GpuProcess, Silent, start_child

log = structlog.get_logger(__name__)

DRIVER = "driver"
"""What a child touches when it touches no card in particular."""
NOTHING = "nothing"
"""Where a child hung that did not hang."""
NOT_LOADED, NO_LIBRARY, MISMATCH, LISTS_NONE = 9, 12, 18, 28
"""nvmlReturn_t."""
XIDS_KEPT = 256  # until somebody takes them
CLOSING = 30  # hundredths of a second in which a killed child is gone; one that cannot be killed is left

Words = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pace:
    """How often is asked, and how long an answer may take, in seconds."""

    period: float = 1.0
    processes: float = 5.0  # lists of processes hold a lock of the driver for milliseconds
    driver: float = 30.0  # until NVML has started: without persistence mode the driver wakes every card first
    first: float = 30.0  # a card's first answer, for the same reason
    anew: float = 10.0  # the first to a new process, of a card that has answered before
    card: float = 5.0  # any other
    again: float = 5.0  # NVML did not start: the next try, doubling up to
    again_max: float = 30.0
    again_absent: float = 300.0  # where there has never been a card
    retry: float = 60.0  # a card that hung: asked again, doubling up to
    retry_max: float = 900.0


class GpuSense:
    """Watches the GPUs from `start` to `close`; `view` is what is known, however old.

    `on_change` is called, in the event loop, when a trouble began or ended or an Xid came; not for new figures.
    """

    def __init__(
        self,
        on_change: Callable[[], None],
        pace: Pace = Pace(),
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_change = on_change
        self._pace = pace
        self._environment = environment
        self._clock = clock
        self._cards = Cards()
        self._driver = DriverView()
        self._xids: list[Xid] = []
        self._left: list[tuple[Card | str, GpuProcess]] = []  # hung at that, and not known to have ended
        self._touching: int | str = DRIVER
        self._uuid: str | None = None  # of the card that is touched, if it has said it
        self._count: int | None = None
        self._told_broken: set[str] = set()  # defects, each told once
        self._failures = 0  # starts of NVML in a row that came to nothing
        self._task: asyncio.Task[None] | None = None
        self._child: GpuProcess | None = None

    def view(self) -> DriverView:
        """The driver and all cards, as far as they are known now."""
        view = self._driver
        cards = self._cards.views()
        if view.state is DriverState.OK and self._cards.all_silent():
            since = max(card.silent_since or 0.0 for card in cards)
            sentence = _wedged(f"no call about any of the {len(cards)} GPUs returns")
            return replace(view, state=DriverState.WEDGED, sentence=sentence, since=since, cards=cards)
        return replace(view, cards=cards)

    def take_xids(self) -> tuple[Xid, ...]:
        """The Xids since the last time, each handed out once."""
        taken, self._xids = tuple(self._xids), []
        return taken

    def child_pid(self) -> int | None:
        """The process that asks now."""
        return self._child.pid if self._child is not None else None

    def start(self) -> None:
        """Begins to ask; needs a running loop."""
        self._task = asyncio.get_running_loop().create_task(self._ask_for_ever(), name="ask NVML")

    async def close(self) -> None:
        """Stops asking, at once; a process that cannot be killed is left behind."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for _ in range(CLOSING):
            if self._reap():
                return
            await asyncio.sleep(0.01)

    # --- one child after the other ------------------------------------------------------------------------------------

    async def _ask_for_ever(self) -> None:
        while True:
            try:
                pause = await self._one_child()
            except OSError as error:
                words = f"no process can be started that asks NVML: {error.strerror or error}; ulimit -u, free -m"
                pause = self._failed(DriverState.FAILED, words)
            except Exception as error:
                pause = self._broke_here(error)
            await self._rest(pause)

    async def _one_child(self) -> float:
        """Follows one child to its end. Returns the seconds until the next may begin."""
        pace = self._pace
        skip = frozenset(card.index for card in self._cards.silent() if not self._may_retry(card))
        child = self._child = await start_child((pace.period, pace.processes), skip, self._environment)
        self._touching, self._uuid = DRIVER, None
        hung_at: Card | str = NOTHING
        try:
            return await self._follow(child, skip)
        except Silent:
            hung_at, pause = self._silence()
            return pause
        except Ended as ended:
            return self._broke(str(ended))
        finally:
            self._child = None
            child.leave()
            self._left.append((hung_at, child))

    async def _follow(self, child: GpuProcess, skip: frozenset[int]) -> float:
        """Hears a child until it has to be replaced. Raises Silent and Ended."""
        within = self._pace.driver
        while True:
            for words in await child.hear(within):
                if "down" in words:
                    return self._down(int(words["down"]["code"]), str(words["down"]["words"]))
                within = self._take(words)
                if "end" in words:
                    listed, self._count = self._count, int(words["end"])
                    if skip and listed is not None and listed != self._count:
                        self._cards.forget_silence(self._clock())
                        return 0.0  # somebody else may be at an index that is left alone
                    if any(self._may_retry(card) for card in self._cards.silent()):
                        return 0.0

    def _take(self, words: Words) -> float:
        """Takes in one statement. Returns the seconds within which the next has to come."""
        now, changed, within = self._clock(), False, self._pace.card
        if "begin" in words:
            self._touching, self._uuid = words["begin"], words.get("uuid")
            if self._touching == DRIVER:
                self._cards.begin_round()
                within = self._pace.driver
            elif self._uuid is None:
                within = self._pace.anew if self._cards.has_answered(self._touching) else self._pace.first
        elif "up" in words:
            self._driver = replace(self._driver, version=str(words["up"]["driver"]))
        elif "card" in words:
            changed = self._cards.told_figures(words["card"], now)
        elif "refused" in words:
            changed = self._cards.told_refusal(words["refused"], now)
        elif "xid" in words:
            told = words["xid"]
            self._xids = [*self._xids, Xid(int(told["code"]), now, Source.NVML, uuid=told["uuid"])][-XIDS_KEPT:]
            changed = True
        elif "end" in words:
            changed = self._round_over(int(words["end"]), now)
            within += self._pace.period
        if changed:
            self._tell()
        return within

    def _round_over(self, count: int, now: float) -> bool:
        self._failures = 0
        changed = self._cards.end_round(count, now)
        if count == 0:
            words = "the NVIDIA driver runs and lists no GPU; nvidia-smi, dmesg | grep NVRM"
            changed |= self._stand(DriverState.FAILED, words)
        else:
            changed |= self._stand(DriverState.OK, f"driver {self._driver.version}, {count} GPU{'s'[: count > 1]}")
        self._driver = replace(self._driver, asked_at=now)
        self._reap()
        return changed

    # --- trouble ------------------------------------------------------------------------------------------------------

    def _silence(self) -> tuple[Card | str, float]:
        """It hangs, and said before at what. Returns that, and the pause until the next child."""
        if isinstance(self._touching, int):
            card = self._cards.told_nothing(self._touching, self._uuid, self._clock())
            wait = min(self._pace.retry * 2 ** (card.silences - 1), self._pace.retry_max)
            card.retry_at = self._clock() + wait
            log.warning("a GPU does not answer; it is left alone for now", gpu=card.uuid or card.index, retry_s=wait)
            self._tell()
            return card, 0.0
        words = _wedged(f"NVML has given no answer in {self._pace.driver:g} s")
        return DRIVER, self._failed(DriverState.WEDGED, words)

    def _broke(self, last: str) -> float:
        """The child ended without a word of NVML's: killed, or a crash in the library."""
        words = f"the process that asks NVML ended: {last}; nvidia-smi"
        log.warning("the process that asks NVML ended and is started again", last=last, at=self._touching)
        if self._failures and isinstance(self._touching, int):
            return self._silence()[1]  # again, and while a card was asked: that one is left alone
        if self._failures == 0 and self._driver.state is DriverState.OK:
            self._failures = 1
            return self._pace.period  # once is no news: the figures get a little older
        return self._failed(DriverState.FAILED, words)

    def _broke_here(self, error: Exception) -> float:
        """A defect of ours: told once for as long as it lasts. What was seen before is not seen any more."""
        words = f"what NVML says cannot be understood: {error!r}; chatglm-hactl history --since 10m"
        if (self._driver.state, self._driver.sentence) != (DriverState.FAILED, words):
            log.error("BUG: asking NVML failed; another process is started that asks it", exc_info=error)
        return self._failed(DriverState.FAILED, words)

    def _down(self, code: int, words: str) -> float:
        if code == MISMATCH:
            return self._failed(
                DriverState.MISMATCHED,
                "the NVIDIA library is not of the version of the loaded driver, one of them was upgraded: what runs "
                "goes on, nothing new can start on a GPU; reboot the host",
            )
        if code == NO_LIBRARY:
            return self._failed(DriverState.ABSENT, "no NVIDIA driver is installed: libnvidia-ml.so.1 is not there")
        if code in (NOT_LOADED, LISTS_NONE):
            return self._failed(
                DriverState.FAILED, "the NVIDIA driver is installed and not loaded; modprobe nvidia, dmesg | grep NVRM"
            )
        return self._failed(DriverState.FAILED, f"NVML does not start: {words} (error {code}); nvidia-smi")

    def _failed(self, state: DriverState, sentence: str) -> float:
        """NVML as a whole cannot be asked. Returns the pause until the next try."""
        pace = self._pace
        self._failures += 1
        if self._stand(state, sentence):
            log.info("GPUs cannot be seen", state=state.value, reason=sentence)
            self._tell()
        most = pace.again_max if self._cards.any() or state is not DriverState.ABSENT else pace.again_absent
        return float(min(pace.again * 2 ** min(self._failures - 1, 16), most))

    def _stand(self, state: DriverState, sentence: str) -> bool:
        """Sets the driver's state; True when it is another one."""
        before = self._driver
        if (before.state, before.sentence) == (state, sentence):
            return False
        since = before.since if before.state is state else self._clock()
        self._driver = replace(before, state=state, sentence=sentence, since=since)
        return True

    def _tell(self) -> None:
        """Whoever is told may break; the sense goes on all the same."""
        try:
            self._on_change()
        except Exception as error:
            if repr(error) not in self._told_broken:
                self._told_broken.add(repr(error))
                log.exception("BUG: news of the GPUs was not taken in; this is told once")

    # --- those left behind --------------------------------------------------------------------------------------------

    async def _rest(self, pause: float) -> None:
        """Waits for the next child's time; while one hangs unkillably in the driver itself, another would too."""
        until = self._clock() + pause
        while True:
            self._reap()
            if self._clock() >= until and not any(where == DRIVER for where, _ in self._left):
                return
            await asyncio.sleep(min(max(until - self._clock(), 0.05), 1.0))

    def _may_retry(self, card: Card) -> bool:
        """Whether that silent card may be asked again: not while somebody still hangs in the call about it."""
        return self._clock() >= card.retry_at and not any(where is card for where, _ in self._left)

    def _reap(self) -> bool:
        """Forgets those that have ended; True when nobody is left."""
        self._left = [(where, child) for where, child in self._left if not child.is_gone()]
        return not self._left


def _wedged(what: str) -> str:
    return f"the NVIDIA driver hangs: {what}; what runs is left alone, nothing new starts on a GPU; reboot the host"
