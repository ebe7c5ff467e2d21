"""The course of a drill: load, fault, watching until all serves again, the fault undone, and the sheet filled in."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hasupervisor.drill import faults, judgement, sheet, witness
from hasupervisor.drill.faults import NotMade
from hasupervisor.drill.guardian import Guardian, GuardianLost
from hasupervisor.drill.judgement import Evidence
from hasupervisor.drill.load import Asker, Load, NotAnswered
from hasupervisor.drill.order import Order
from hasupervisor.drill.sheet import CANCELLED, DONE, FAILED, Sheet, Until
from hasupervisor.drill.witness import Witness

LOOK_S = 0.05
WRITE_S = 0.25
WARM_S = 1.0
"""Seconds of load before the fault: what fails without it is no news of it."""

TAIL_S = 1.0
"""Seconds of load after all serves again."""

FIRST_LOOK_S = 10.0
SETTLE_TIMES = 4.0
"""Two dialects may be tried, each with a question for the model's name before it."""


class CalledOff(Exception):
    """Somebody wants the drill to end: SIGTERM, SIGINT or SIGHUP."""


class Abandoned(Exception):
    """The drill cannot go on; the text says why."""


class Drill:
    """Carries one order out. `run` once."""

    def __init__(self, order: Order, guardian: Guardian, first: Sheet) -> None:
        self._order = order
        self._guardian = guardian
        self._folder = Path(order.path).parent
        self._sheet = first
        self._written = first
        self._writing_fails = False
        self._called_off = asyncio.Event()
        self._lost = ""  # why the guardian is no more
        self._fault_at: float | None = None
        self._undone_at: float | None = None
        self._until: Until | None = None  # final, once all serves again
        self._asker = Asker(order)
        self._load = Load(self._asker, order.rate)
        self._witness = Witness(order.socket, first.started)

    async def run(self) -> Sheet:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._called_off.set)
        try:
            async with asyncio.TaskGroup() as group:
                beside = [group.create_task(part) for part in (self._witness.run(), self._keep_sheet(), self._guard())]
                try:
                    state, findings = await self._course()
                finally:
                    for part in beside:
                        part.cancel()
        finally:
            await self._load.close()
            await self._asker.close()
            await self._witness.close()
        return self._finish(state, findings)

    async def _course(self) -> tuple[str, tuple[str, ...]]:
        """How the drill ends, and what was not as promised."""
        try:
            over = await self._carry_out()
            findings = judgement.broken_promises(self._order, self._load.tally, self._times(), over=over)
            return (FAILED if findings else DONE), findings
        except CalledOff:
            return CANCELLED, ("it was called off",)
        except (Abandoned, NotMade, NotAnswered, GuardianLost) as error:
            return FAILED, (str(error),)
        finally:
            await self._undo()

    async def _carry_out(self) -> bool:
        """From the first prompt to the last answer; whether all serves again."""
        order = self._order
        await self._prepare()
        self._say(f"{order.rate:g} prompts a second through the gateway")
        sending = asyncio.create_task(self._load.run(), name="load")
        try:
            await self._for(WARM_S)
            self._refuse_if_it_fails()
            await self._make()
            over = await self._until_over()
            if over:
                await self._for(TAIL_S)
        finally:
            self._load.stop()
            await sending
        self._say("waits for what is under way")
        await self._reach(lambda: not self._load.open, order.patience)
        return over

    async def _prepare(self) -> None:
        """Looks before anything is done: the daemon and the gateway answer."""
        if not await self._reach(lambda: self._witness.picture is not None, FIRST_LOOK_S):
            raise Abandoned(f"nothing was done: {self._witness.trouble or 'the daemon does not answer'}")
        asking = asyncio.create_task(self._asker.settle())
        try:
            await self._reach(asking.done, SETTLE_TIMES * self._order.patience)
            if asking.done():
                asking.result()
        except NotAnswered as error:
            raise NotAnswered(f"nothing was done: health.prompt is not answered through the gateway: {error}") from None
        finally:
            asking.cancel()

    def _refuse_if_it_fails(self) -> None:
        tally = self._load.tally
        if tally.failed:
            raise NotAnswered(f"nothing was done: {tally.failures[0][0]}, before there was any fault")

    async def _make(self) -> None:
        if faults.holds(self._order):
            # On disk before it is done: whoever finds the sheet of a drill that is dead knows whom to let go on.
            self._sheet = replace(self._sheet, held=self._order.target)
            try:
                sheet.write(self._folder, self._sheet, lasting=True)
            except OSError as error:
                raise Abandoned(f"nothing was done: cannot write {self._order.path}: {error.strerror}") from error
        self._fault_at = time.time()
        await faults.make(self._order, self._guardian, self._load)
        self._say(f"{self._order.fault}: made")

    async def _until_over(self) -> bool:
        """The fault for its time, then the wait until all serves again; the load ends at the latest after `seconds`."""
        order = self._order
        if faults.lasts(order):
            await self._for(order.seconds)
        elif await self._reach(self._is_over, order.seconds):
            return True
        await self._undo()
        if not faults.lasts(order):
            self._load.stop()
        return await self._reach(self._is_over, order.limit)

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def _for(self, seconds: float) -> None:
        await self._reach(lambda: False, seconds)

    async def _reach(self, condition: Callable[[], bool], within: float) -> bool:
        """Whether it came true in so many seconds. Raises CalledOff and GuardianLost."""
        deadline = time.monotonic() + within
        while True:
            if self._called_off.is_set():
                raise CalledOff
            if self._lost:
                raise GuardianLost(self._lost)
            if condition():
                return True
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(LOOK_S)

    def _is_over(self) -> bool:
        evidence = self._evidence()
        if evidence is None or not judgement.is_over(self._order, evidence):
            return False
        self._until = self._until or judgement.until(self._order, evidence)
        return True

    def _evidence(self) -> Evidence | None:
        if self._fault_at is None:
            return None
        seen = self._witness
        return Evidence(self._fault_at, self._undone_at, seen.picture, seen.history, seen.pid)

    def _times(self) -> Until:
        evidence = self._evidence()
        if self._until is not None:
            return self._until
        return judgement.until(self._order, evidence) if evidence is not None else Until()

    # --- what goes on beside ------------------------------------------------------------------------------------------

    async def _guard(self) -> None:
        await self._guardian.ended()
        self._lost = f"the drill's guardian (pid {self._guardian.process.pid}) was ended from outside"

    async def _keep_sheet(self) -> None:
        while True:
            self._fill_in()
            if self._sheet != self._written:
                self._write()
            await asyncio.sleep(WRITE_S)

    def _fill_in(self) -> None:
        history = witness.about(self._witness.history, self._fault_at) if self._fault_at is not None else ()
        self._sheet = replace(
            self._sheet, fault_at=self._fault_at, load=self._load.tally, until=self._times(), history=history
        )

    def _write(self, *, lasting: bool = False) -> None:
        """A full disk does not end a drill; its sheet is then old until there is room."""
        try:
            sheet.write(self._folder, self._sheet, lasting=lasting)
        except OSError as error:
            if not self._writing_fails:
                print(f"{self._order.id}: cannot write {self._order.path}: {error.strerror}", file=sys.stderr)
            self._writing_fails = True
        else:
            self._written, self._writing_fails = self._sheet, False

    def _say(self, words: str) -> None:
        self._sheet = replace(self._sheet, sentence=words)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _undo(self) -> None:
        if self._fault_at is None or self._undone_at is not None:
            return
        try:
            await faults.undo(self._order, self._guardian, self._load)
        except GuardianLost as error:
            self._lost = str(error)
        self._undone_at = time.time()

    def _finish(self, state: str, findings: tuple[str, ...]) -> Sheet:
        self._fill_in()
        seen, tally = self._sheet.until, self._sheet.load
        words = judgement.sentence(self._order, tally, seen) if self._fault_at is not None else ""
        told = "; ".join(filter(None, [*(findings if state != DONE else ()), words]))
        self._sheet = replace(self._sheet, state=state, sentence=told, findings=findings, ended=time.time(), held=None)
        self._write(lasting=True)
        return self._sheet
