"""The gateway as the rest of the house sees it: a routing table is wanted, a proven one is shown."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Set
from pathlib import Path

import structlog

from hasupervisor.act.nginx import own, process
from hasupervisor.act.nginx.backoff import Backoff
from hasupervisor.act.nginx.confirm import OldWorkersStay
from hasupervisor.act.nginx.delivery import Delivery
from hasupervisor.act.nginx.files import text_of
from hasupervisor.act.nginx.helped import control_for
from hasupervisor.act.nginx.lookout import Lookout, Seen
from hasupervisor.act.nginx.program import Control
from hasupervisor.act.nginx.proof import Proof
from hasupervisor.act.nginx.reception import Reception
from hasupervisor.act.nginx.roomsocket import Keeper
from hasupervisor.act.nginx.settings import NginxSettings, NginxTrouble
from hasupervisor.act.nginx.watch import MasterWatch
from hasupervisor.model import Address, GatewayView, Routing

# An instance more may wait this long for another one; an instance less never waits.
BATCH_S = 0.5
# Each reload leaves an old worker until its last stream has ended. With many of them, who joins waits for others.
MANY_OLD = 16
BATCH_MANY_S = 10.0
LATE_EVERY_S = 0.5  # whether an old worker that did not retire has gone
FIRST_PASS_S = 5.0
FORCED_DEADLINE_S = 60.0
QUIT_S = 10.0
TROUBLES = ("deliver", "test", "answer", "room")  # the first that there is, is shown
QUICK_DEATHS = 3  # of a master, one after the other: replaced at once; then with backoff

log = structlog.get_logger(__name__)


class Gateway:
    """Keeps nginx running the routing table that is wanted, in one background task that does one thing at a time."""

    def __init__(
        self,
        settings: NginxSettings,
        on_change: Callable[[], None],
        on_wait: Callable[[], None] = lambda: None,
        control: Control | None = None,
        *,
        keeper: Keeper | None = None,
        lasting: Path | None = None,
    ) -> None:
        """`on_change` is called when the view has changed, `on_wait` while requests wait for a newer proof.

        `keeper` holds our socket while the daemon is started again, and `lasting` is there for as long as it does.
        """
        self._settings = dataclasses.replace(settings, dir=settings.dir.absolute())
        self._on_change = on_change
        self._delivery = Delivery(self._settings, control or control_for(self._settings))
        self._reception = Reception(self._settings, self._serving, on_wait, keeper, lasting)
        self._wake = asyncio.Event()
        self._passed = asyncio.Event()
        self._master = MasterWatch(self._wake.set)
        self._task: asyncio.Task[None] | None = None
        self._view = GatewayView(off=settings.mode == "off")
        self._at_start: frozenset[Address] = frozenset()

        self._wanted: Routing | None = None
        self._reconfigured: NginxSettings | None = None  # settings that the next pass takes over
        self._proof = Proof()
        self._troubles: dict[str, str] = {}  # one of TROUBLES -> why not, in words

        self._forced: list[asyncio.Future[tuple[bool, str]]] = []
        self._backoff = Backoff()
        self._lost_masters = 0
        self._delivered_at = -BATCH_S
        self._lookout = Lookout(
            Seen(self._delivery, self._proof, self._master, self._reception, self._troubles),
            self._settings,
            self._try_again,
        )

    # --- for the rest of the house -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Reads what is on disk, adopts the running nginx (mode own: or starts one), begins to keep it."""
        if self._settings.mode == "off":
            return
        with contextlib.suppress(NginxTrouble):  # the first pass tries again, and says it
            await self._prepare()
        self._task = asyncio.create_task(self._run(), name="gateway")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_PASS_S):
                await self._passed.wait()

    def want(self, routing: Routing) -> None:
        """Says what is wanted now; cheap, and nothing when it was wanted before."""
        if routing == self._wanted:
            return
        self._wanted = routing
        self._backoff.try_at_once()
        self._wake.set()

    def prove(self, proofs: Mapping[Address, float], blameless: Set[Address] = frozenset()) -> None:
        """Who serves, each with the time at which the question that it answered last was put (monotonic).

        `blameless`: who turned bad together with others, so that no request is to blame for its fall.
        """
        self._reception.waiting.prove(proofs, blameless)

    def view(self) -> GatewayView:
        counts = self._reception.waiting.counts
        return dataclasses.replace(
            self._view,
            held=self._reception.waiting.waiting,
            held_total=counts.held,
            released_total=counts.released,
            refused_total=counts.expired + counts.refused_full + counts.refused_deadly,
        )

    def on_disk(self) -> frozenset[Address]:
        """What upstream.conf routed when we started: a start un-routes nothing."""
        return self._at_start

    def reconfigure(self, settings: NginxSettings) -> None:
        """Takes other settings over without a restart, except those that need one: mode, dir, binary, reload."""
        old = self._settings
        self._reconfigured = dataclasses.replace(
            settings, mode=old.mode, dir=old.dir, binary=old.binary, reload=old.reload
        )
        self._reception.waiting.reconfigure(hold=settings.hold, hold_max=settings.hold_max, tries=settings.tries)
        self._wake.set()

    async def test(self) -> tuple[bool, str]:
        """`nginx -t` of what is on disk, in nginx's own words."""
        if self._settings.mode == "off":
            return False, 'nginx.mode is "off"'
        try:
            return await self._delivery.test()
        except NginxTrouble as trouble:
            return False, str(trouble)

    async def reload(self) -> tuple[bool, str]:
        """A new generation with every file written anew, whether anything has changed or not; waits for the proof."""
        if self._task is None:
            return False, 'nginx.mode is "off"' if self._settings.mode == "off" else "the gateway has not started"
        answer: asyncio.Future[tuple[bool, str]] = asyncio.get_running_loop().create_future()
        self._forced.append(answer)
        self._wake.set()
        try:
            async with asyncio.timeout(FORCED_DEADLINE_S):
                return await answer
        except TimeoutError:
            return False, f"no end within {FORCED_DEADLINE_S:.0f} s: chatglm-hactl nginx show"

    def files(self) -> dict[str, str]:
        """The files as they are on disk, by name."""
        texts = {name: text_of(self._settings.dir / name) for name in ("nginx.conf", "gateway.conf", "upstream.conf")}
        return {name: text for name, text in texts.items() if text is not None}

    async def close(self) -> None:
        """Lets nginx run, and goes."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        _answer(self._forced, False, "the daemon stops")
        self._master.forget()
        self._delivery.close()
        await self._reception.close()

    async def shutdown(self, patience: float = QUIT_S) -> None:
        """Closes, and in mode own ends nginx: requests in flight get `patience` seconds. Raises NginxTrouble."""
        await self.close()
        if self._settings.own and self._delivery.layout is not None:
            await own.shutdown(self._settings, self._delivery.layout, patience)

    async def _prepare(self) -> None:
        """Takes over what is on disk, and begins to answer nginx. Raises NginxTrouble."""
        await self._delivery.prepare()
        await self._lookout.open_reception()
        disk = self._delivery.disk
        self._proof.begin(disk)
        if self._settings.boot and disk.boot not in ("", self._settings.boot):
            # Since that boot somebody else may have been given these addresses: nobody is sent there unproven.
            log.warning("the host has been booted since the routing was written: nobody is routed until it is proven")
            if self._wanted is None:
                self._wanted = Routing(everyone=disk.routing.everyone)
        else:
            self._at_start = disk.routed

    def _try_again(self) -> None:
        """Something is not as it was: a chance for what had failed."""
        self._backoff.try_at_once()
        self._wake.set()

    # --- the background task -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._pass()
            except Exception as error:
                log.exception("BUG in the gateway's task", error=repr(error))
                self._fail(f"BUG in the gateway's task: {error!r}; please report it")
            self._publish()
            self._passed.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._next_at() - time.monotonic())):
                    await self._wake.wait()

    async def _pass(self) -> None:
        if self._reconfigured is not None:
            self._settings, self._reconfigured = self._reconfigured, None
            self._delivery.reconfigure(self._settings)
            self._backoff.try_at_once()
        await self._follow_master()
        if self._proof.late and all(process.retired(pid) for pid in self._proof.late):
            self._backoff.try_at_once()
        if self._is_due():
            await self._deliver()
        if time.monotonic() >= self._lookout.at:
            await self._lookout.look()

    def _next_at(self) -> float:
        if self._backoff.retry_at is not None:
            late_at = time.monotonic() + LATE_EVERY_S if self._proof.late else self._lookout.at
            return min(self._lookout.at, self._backoff.retry_at, late_at)
        if self._differs():
            return min(self._lookout.at, self._delivered_at + self._batch_s)
        return self._lookout.at

    def _differs(self) -> bool:
        return self._wanted is not None and self._delivery.layout is not None and self._delivery.differs(self._wanted)

    def _is_due(self) -> bool:
        now = time.monotonic()
        if self._forced:
            return True
        if self._backoff.retry_at is not None:
            return now >= self._backoff.retry_at
        if self._delivery.layout is None or (self._settings.own and self._master.pid is None):
            return True
        if self._delivery.disk.generation and not self._proof.complete:
            return True
        if not self._differs():
            return False
        return self._is_urgent() or now >= self._delivered_at + self._batch_s

    @property
    def _batch_s(self) -> float:
        return BATCH_MANY_S if self._lookout.old_workers >= MANY_OLD else BATCH_S

    def _is_urgent(self) -> bool:
        """Somebody leaves the list, or somebody comes to an empty one."""
        wanted = {route.address for route in self._wanted_or_written().routes}
        return not self._delivery.disk.routed or not self._delivery.disk.routed <= wanted

    def _wanted_or_written(self) -> Routing:
        return self._wanted if self._wanted is not None else self._delivery.disk.routing

    async def _deliver(self) -> None:
        forced, self._forced = self._forced, []
        try:
            await self._bring(self._wanted_or_written(), forced=bool(forced))
        except NginxTrouble as trouble:
            self._fail(str(trouble))
            _answer(forced, False, str(trouble))
        else:
            self._publish()  # who has waited for this looks at the view next
            _answer(forced, True, "")
        finally:
            self._delivered_at = time.monotonic()
            _answer(forced, False, "a defect of the daemon, see its log")  # if nothing was answered above

    async def _bring(self, routing: Routing, *, forced: bool) -> None:
        """From the table to the proof, as far as it is not there yet. Raises NginxTrouble."""
        delivery = self._delivery
        if not delivery.prepared:
            await self._prepare()
            routing = self._wanted_or_written()
        if delivery.layout is None:
            await delivery.survey()
            await self._follow_master()
        dead = self._settings.own and self._master.pid is None
        settled = not dead and (self._proof.complete or not delivery.disk.generation)
        if settled and not forced and self._wanted is None:
            return  # a start disturbs nothing
        anew = forced
        if not forced and not delivery.differs(routing):
            good, said = await delivery.test()
            if good and settled:
                return self._confirm()
            if not good and not dead:
                raise NginxTrouble(said)
            anew = not good  # nothing runs: our files as they should be, whatever was done to them, if that helps
        if anew or delivery.differs(routing):
            staged = await delivery.stage(routing, anew=anew)
            self._proof.widen(staged.written.routed)
            self._publish()
            await delivery.commit(staged)
            self._publish()
        try:
            master = await delivery.activate(self._proof.late)
        except OldWorkersStay as stay:
            self._proof.answered(delivery.disk, stay.late)
            self._lookout.count_old_workers()
            raise
        if master != self._master.pid:
            self._master.follow(master)
        self._confirm()

    def _confirm(self) -> None:
        """What is on disk has been proven to be all that takes requests."""
        disk = self._delivery.disk
        if not self._proof.complete or self._proof.generation != disk.generation:
            log.info("nginx runs what is on disk", generation=disk.generation, servers=len(disk.routed))
        self._proof.confirm(disk)
        self._lookout.count_old_workers()
        for key in ("deliver", "test", "answer"):
            self._troubles.pop(key, None)
        self._backoff.clear()

    def _fail(self, words: str) -> None:
        if self._troubles.get("deliver") != words:
            log.warning("nginx does not take the routing", reason=words)
        self._troubles["deliver"] = words
        self._backoff.fail()

    async def _follow_master(self) -> None:
        """Knows the master, and recognises at first sight what its workers run."""
        layout = self._delivery.layout
        self._master.check()
        if layout is None or self._master.pid is not None:
            return
        pid = process.find_master(layout)
        if pid is None:
            self._miss_master()
            if not self._settings.own and (await self._delivery.ask()).refused:
                self._proof.live = self._delivery.disk.routed  # nobody sends anything now; a start would send it there
            return
        self._master.follow(pid)
        self._backoff.try_at_once()
        answer = await self._delivery.ask()
        disk = self._delivery.disk
        if disk.generation and answer.generation == disk.generation:
            self._confirm()
            self._lookout.check_sign(answer)
        else:
            self._proof.doubt(answer.generation, disk)

    def _miss_master(self) -> None:
        if self._proof.generation is not None:
            log.warning("nginx's master is gone")
            self._lost_masters += 1
            if self._settings.own and self._master.quick_deaths > QUICK_DEATHS:
                self._fail(f"nginx keeps ending soon after its start: see {self._settings.dir}/error.log")
        self._proof.lose_master()

    # --- what is shown -------------------------------------------------------------------------------------------

    def _serving(self) -> int:
        """How many instances are proven and reachable through nginx now."""
        return len({route.address for route in self._wanted_or_written().routes} & self._proof.live)

    def _publish(self) -> None:
        disk = self._delivery.disk
        reason = next((self._troubles[key] for key in TROUBLES if key in self._troubles), None)
        view = GatewayView(
            ok=reason is None,
            reason=reason,
            generation=disk.generation,
            live_generation=self._proof.generation,
            live=self._proof.live,
            joining=self._proof.joining,
            servers=self._proof.servers,
            old_workers=self._lookout.old_workers,
            lost_masters=self._lost_masters,
        )
        if view != self._view:
            self._view = view
            self._on_change()


def _answer(waiting: list[asyncio.Future[tuple[bool, str]]], ok: bool, words: str) -> None:
    for answer in waiting:
        if not answer.done():
            answer.set_result((ok, words))
