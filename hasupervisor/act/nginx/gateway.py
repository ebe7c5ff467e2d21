"""The gateway as the rest of the house sees it: a routing table is wanted, a proven one is shown."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Set

import structlog

from hasupervisor.act.nginx import own, process
from hasupervisor.act.nginx.backoff import Backoff
from hasupervisor.act.nginx.delivery import Delivery
from hasupervisor.act.nginx.files import text_of
from hasupervisor.act.nginx.helped import control_for
from hasupervisor.act.nginx.program import Control
from hasupervisor.act.nginx.proof import Proof
from hasupervisor.act.nginx.room import Room
from hasupervisor.act.nginx.settings import NginxSettings, NginxTrouble
from hasupervisor.act.nginx.waiting import WaitingRoom
from hasupervisor.act.nginx.watch import FileWatch, MasterWatch
from hasupervisor.model import Address, GatewayView, Routing

# An instance more may wait this long for another one; an instance less never waits.
BATCH_S = 0.5
# Each reload leaves an old worker until its last stream has ended. With many of them, who joins waits for others.
MANY_OLD = 16
BATCH_MANY_S = 10.0
LOOK_EVERY_S = 2.0  # whether a file of the configuration has changed
TEST_EVERY_S = 60.0  # nginx -t even if none has
ASK_EVERY_S = 10.0  # which generation answers
FIRST_PASS_S = 5.0
FORCED_DEADLINE_S = 60.0
QUIT_S = 10.0
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
    ) -> None:
        """`on_change` is called when the view has changed, `on_wait` while requests wait for a newer proof."""
        self._settings = dataclasses.replace(settings, dir=settings.dir.absolute())
        self._on_change = on_change
        self._delivery = Delivery(self._settings, control or control_for(self._settings))
        self._waiting = WaitingRoom(
            hold=settings.hold,
            hold_max=settings.hold_max,
            tries=settings.tries,
            own=settings.room,
            on_wait=on_wait,
        )
        self._room = Room(settings.room, self._serving, self._waiting)
        self._wake = asyncio.Event()
        self._passed = asyncio.Event()
        self._master = MasterWatch(self._wake.set)
        self._files = FileWatch()
        self._task: asyncio.Task[None] | None = None
        self._view = GatewayView(off=settings.mode == "off")
        self._at_start: frozenset[Address] = frozenset()

        self._wanted: Routing | None = None
        self._reconfigured: NginxSettings | None = None  # settings that the next pass takes over
        self._proof = Proof()
        self._troubles: dict[str, str] = {}  # "deliver", "test", "answer" -> why not, in words

        self._forced: list[asyncio.Future[tuple[bool, str]]] = []
        self._backoff = Backoff()
        self._lost_masters = 0
        self._unanswered = 0
        self._old_workers = 0  # that only finish what they have
        self._delivered_at = -BATCH_S
        self._look_at = self._test_at = self._ask_at = 0.0

    # --- for the rest of the house -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Reads what is on disk, adopts the running nginx (mode own: or starts one), begins to keep it."""
        if self._settings.mode == "off":
            return
        await self._open_room()
        with contextlib.suppress(NginxTrouble):  # the first pass tries again, and says it
            await self._delivery.prepare()
        self._at_start = self._delivery.disk.routed
        self._proof.begin(self._delivery.disk)
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
        self._waiting.prove(proofs, blameless)

    def view(self) -> GatewayView:
        counts = self._waiting.counts
        return dataclasses.replace(
            self._view,
            held=self._waiting.waiting,
            held_total=counts.held,
            released_total=counts.released,
            refused_total=counts.expired + counts.refused_full + counts.refused_deadly,
        )

    def on_disk(self) -> frozenset[Address]:
        """What upstream.conf routed when we started: a start un-routes nothing."""
        return self._at_start

    def reconfigure(self, settings: NginxSettings) -> None:
        """Takes other settings over without a restart, except those that need one: mode, dir, binary, reload, room."""
        old = self._settings
        self._reconfigured = dataclasses.replace(
            settings, mode=old.mode, dir=old.dir, binary=old.binary, reload=old.reload, room=old.room
        )
        self._waiting.reconfigure(hold=settings.hold, hold_max=settings.hold_max, tries=settings.tries)
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
        self._waiting.close()
        await self._room.close()

    async def shutdown(self, patience: float = QUIT_S) -> None:
        """Closes, and in mode own ends nginx: requests in flight get `patience` seconds. Raises NginxTrouble."""
        await self.close()
        if self._settings.own and self._delivery.layout is not None:
            await own.shutdown(self._settings, self._delivery.layout, patience)

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
        if self._is_due():
            await self._deliver()
        if time.monotonic() >= self._look_at:
            await self._look()

    def _next_at(self) -> float:
        if self._backoff.retry_at is not None:
            return min(self._look_at, self._backoff.retry_at)
        if self._differs():
            return min(self._look_at, self._delivered_at + self._batch_s)
        return self._look_at

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
        return BATCH_MANY_S if self._old_workers >= MANY_OLD else BATCH_S

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
            _answer(forced, True, "")
        finally:
            self._delivered_at = time.monotonic()
            _answer(forced, False, "a defect of the daemon, see its log")  # if nothing was answered above

    async def _bring(self, routing: Routing, *, forced: bool) -> None:
        """From the table to the proof, as far as it is not there yet. Raises NginxTrouble."""
        delivery = self._delivery
        if not delivery.prepared:
            await delivery.prepare()
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
        master = await delivery.activate()
        if master != self._master.pid:
            self._master.follow(master)
        self._confirm()

    def _confirm(self) -> None:
        """What is on disk has been proven to be all that takes requests."""
        disk = self._delivery.disk
        if not self._proof.complete or self._proof.generation != disk.generation:
            log.info("nginx runs what is on disk", generation=disk.generation, servers=len(disk.routed))
        self._proof.confirm(disk)
        self._count_old_workers()
        self._troubles.clear()
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
        else:
            self._proof.doubt(answer.generation, disk)

    def _miss_master(self) -> None:
        if self._proof.generation is not None:
            log.warning("nginx's master is gone")
            self._lost_masters += 1
            if self._settings.own and self._master.quick_deaths > QUICK_DEATHS:
                self._fail(f"nginx keeps ending soon after its start: see {self._settings.dir}/error.log")
        self._proof.lose_master()

    # --- looking around ------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        now = time.monotonic()
        self._look_at = now + LOOK_EVERY_S
        layout = self._delivery.layout
        if layout is None:
            return
        changed = await asyncio.to_thread(self._files.changed, layout.watched)
        if changed or now >= self._test_at:
            self._test_at = now + TEST_EVERY_S
            await self._judge(changed)
        if now >= self._ask_at and self._master.pid is not None:
            self._ask_at = now + ASK_EVERY_S
            await self._ask()

    async def _judge(self, changed: bool) -> None:
        """Whether nginx would take what is on disk; a change of it is also a chance for what had failed."""
        try:
            await self._delivery.check_upstream()
            good, said = await self._delivery.test()
        except NginxTrouble as trouble:
            good, said = False, str(trouble)
        if good:
            self._troubles.pop("test", None)
        else:
            self._troubles["test"] = said
        if changed:
            self._backoff.try_at_once()
            self._wake.set()
        if not self._room.open:
            await self._open_room()
        if self._settings.own and self._master.pid is not None:
            try:
                await asyncio.to_thread(own.bound_logs, self._settings.dir, self._master.pid)
            except OSError as error:
                log.warning("cannot bound nginx's logs", reason=str(error))

    def _count_old_workers(self) -> None:
        self._old_workers = process.retiring(self._master.pid) if self._master.pid is not None else 0

    async def _ask(self) -> None:
        self._count_old_workers()
        answer = await self._delivery.ask()
        disk = self._delivery.disk.generation
        if answer.generation is None:
            self._unanswered += 1
            if self._unanswered == 1:
                self._ask_at = 0.0  # once may be a busy host: ask again soon
            else:
                self._troubles["answer"] = f"nginx runs (pid {self._master.pid}), but {answer.words}"
            return
        self._unanswered = 0
        self._troubles.pop("answer", None)
        if answer.generation != disk:
            self._proof.generation, self._proof.complete = answer.generation, False
            self._wake.set()

    # --- what is shown -------------------------------------------------------------------------------------------

    async def _open_room(self) -> None:
        """Listens for nginx's questions. Without it nginx asks the instances themselves: still the truth."""
        if not self._settings.room:
            return
        try:
            await self._room.start()
        except (OSError, ValueError) as error:
            log.warning("cannot listen on nginx.room; /health asks the instances instead", reason=str(error))
        self._delivery.room_open = self._room.open

    def _serving(self) -> int:
        """How many instances are proven and reachable through nginx now."""
        return len({route.address for route in self._wanted_or_written().routes} & self._proof.live)

    def _publish(self) -> None:
        disk = self._delivery.disk
        reason = next((self._troubles[key] for key in ("deliver", "test", "answer") if key in self._troubles), None)
        view = GatewayView(
            ok=reason is None,
            reason=reason,
            generation=disk.generation,
            live_generation=self._proof.generation,
            live=self._proof.live,
            joining=self._proof.joining,
            servers=self._proof.servers,
            old_workers=self._old_workers,
            lost_masters=self._lost_masters,
        )
        if view != self._view:
            self._view = view
            self._on_change()


def _answer(waiting: list[asyncio.Future[tuple[bool, str]]], ok: bool, words: str) -> None:
    for answer in waiting:
        if not answer.done():
            answer.set_result((ok, words))
