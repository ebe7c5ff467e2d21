"""Looks around while nothing is delivered: files that have changed, what nginx answers, logs that have grown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from hasupervisor.act.nginx import own, process
from hasupervisor.act.nginx.confirm import Answer
from hasupervisor.act.nginx.delivery import Delivery
from hasupervisor.act.nginx.proof import Proof
from hasupervisor.act.nginx.reception import Reception
from hasupervisor.act.nginx.settings import NginxSettings, NginxTrouble
from hasupervisor.act.nginx.watch import FileWatch, MasterWatch

LOOK_EVERY_S = 2.0  # whether a file of the configuration has changed
TEST_EVERY_S = 60.0  # nginx -t even if none has
ASK_EVERY_S = 10.0  # which generation answers

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """The parts of a gateway that are looked at, and what is wrong with them: a key -> a sentence."""

    delivery: Delivery
    proof: Proof
    master: MasterWatch
    reception: Reception
    troubles: dict[str, str]


class Lookout:
    """What changes without anybody having wanted it."""

    def __init__(self, seen: Seen, settings: NginxSettings, on_change: Callable[[], None]) -> None:
        """`on_change` is called when a delivery may be due."""
        self.at = 0.0  # when to look next, monotonic
        self.old_workers = 0  # that only finish what they have
        self._seen = seen
        self._own, self._dir = settings.own, settings.dir
        self._on_change = on_change
        self._files = FileWatch()
        self._unanswered = 0
        self._test_at = self._ask_at = 0.0

    async def look(self) -> None:
        now = time.monotonic()
        self.at = now + LOOK_EVERY_S
        layout = self._seen.delivery.layout
        if layout is None:
            return
        changed = await asyncio.to_thread(self._files.changed, layout.watched)
        if changed or now >= self._test_at:
            self._test_at = now + TEST_EVERY_S
            await self._judge(changed)
        if now >= self._ask_at and self._seen.master.pid is not None:
            self._ask_at = now + ASK_EVERY_S
            await self._ask()

    async def open_reception(self) -> None:
        """So that nginx can ask the daemon, if it cannot yet."""
        reception = self._seen.reception
        await reception.start()
        self._seen.delivery.room_open = reception.open
        if reception.trouble:
            self._seen.troubles["room"] = reception.trouble
        else:
            self._seen.troubles.pop("room", None)

    def check_sign(self, answer: Answer) -> None:
        """An nginx that runs our files and does not see that we live would never ask us."""
        delivery = self._seen.delivery
        runs_ours = delivery.shows_sign and answer.generation == delivery.disk.generation
        if runs_ours and self._seen.proof.complete and not answer.sees_daemon:
            self._seen.reception.is_overlooked()

    def count_old_workers(self) -> None:
        pid = self._seen.master.pid
        self.old_workers = process.retiring(pid) if pid is not None else 0

    async def _judge(self, changed: bool) -> None:
        """Whether nginx would take what is on disk; a change of it is also a chance for what had failed."""
        delivery, troubles = self._seen.delivery, self._seen.troubles
        try:
            await delivery.check_upstream()
            good, said = await delivery.test()
        except NginxTrouble as trouble:
            good, said = False, str(trouble)
        if good:
            troubles.pop("test", None)
        else:
            troubles["test"] = said
        if changed:
            delivery.reload_again()
            self._on_change()
        await self.open_reception()
        if self._own and self._seen.master.pid is not None:
            try:
                await asyncio.to_thread(own.bound_logs, self._dir, self._seen.master.pid)
            except OSError as error:
                log.warning("cannot bound nginx's logs", reason=str(error))

    async def _ask(self) -> None:
        """Which generation answers now; another one than that on disk makes a delivery due."""
        self.count_old_workers()
        proof, troubles = self._seen.proof, self._seen.troubles
        answer = await self._seen.delivery.ask()
        if answer.generation is None:
            self._unanswered += 1
            if self._unanswered == 1:
                self._ask_at = 0.0  # once may be a busy host: ask again soon
            else:
                troubles["answer"] = f"nginx runs (pid {self._seen.master.pid}), but {answer.words}"
            return
        self._unanswered = 0
        troubles.pop("answer", None)
        self.check_sign(answer)
        if answer.generation != self._seen.delivery.disk.generation:
            proof.generation, proof.complete = answer.generation, False
            self._on_change()
