"""The daemon's side of drills: checks whether one may begin, begins it, shows it, and clears up after one that died."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from hasupervisor.act.nginx.settings import OWN_NAME, NginxSettings, parse_listen
from hasupervisor.drill import aim, faults, processes, safety
from hasupervisor.drill.launch import launch
from hasupervisor.drill.order import OF_AN_INSTANCE, SPIKE_TIMES, Fault, Order
from hasupervisor.drill.sheet import FAILED, RUNNING, Sheet
from hasupervisor.drill.shelf import Shelf
from hasupervisor.model import Address, Judged, Note, Problem
from hasupervisor.observe.window import SPAN
from hasupervisor.report.desk import Declined, DrillAsked, DrillPlan, NoSuch, Refused, Unavailable, no_such_instance
from hasupervisor.report.snapshot import Snapshot
from hasupervisor.runtimes import process_records

log = structlog.get_logger(__name__)

LOOK_S = 0.25
IDLE_S = 30.0  # while no drill is known to run; one that begins is known at once
CALL_OFF_S = 5.0  # it waits for nobody, but its machine may be busy

_SUBJECTS = {Fault.DAEMON.value: "daemon", Fault.GATEWAY.value: "nginx"}


@dataclass(frozen=True, slots=True)
class DrillSettings:
    """What the configuration says that drills need. Times are seconds."""

    socket: Path  # the daemon's own
    nginx: NginxSettings
    in_containers: bool
    engine: str  # docker.host
    prompt: str
    dialect: str
    hang_after: float
    inference_timeout: float
    start_timeout: float
    stop_grace: float

    @property
    def patience(self) -> float:
        """What a request of a drill waits: as long as a hang may take to be proven, and to be answered then."""
        return self.hang_after + 2 * self.inference_timeout

    @property
    def limit(self) -> float:
        """From the end of the load until all has to serve again: an end with its grace, and a start."""
        return self.stop_grace + self.start_timeout

    @property
    def gateway(self) -> str:
        """Where the load goes."""
        listen = parse_listen(self.nginx.listen)
        return f"http://{f'[{listen.host}]' if ':' in listen.host else listen.host}:{listen.port}"


@dataclass(frozen=True, slots=True)
class Books:
    """Where a drill is written down in the daemon's history."""

    note: Callable[[Note], object]
    flush: Callable[[], Awaitable[object]]  # waits for the disk, not for long


class Drills:
    """One at a time; each is a process of its own, with a sheet on the shelf that tells how it stands."""

    def __init__(self, folder: Path, settings: Callable[[], DrillSettings], books: Books, *, supervised: bool) -> None:
        """`supervised`: somebody would start this daemon again."""
        self._shelf = Shelf(folder)
        self._settings = settings
        self._books = books
        self._supervised = supervised
        self._beginning = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._begun = asyncio.Event()
        self._running: Sheet | None = None
        self._settled: set[str] = set()  # drills whose end is in the history
        self._last_end = 0.0  # Unix seconds
        self._users_qps = 0.0  # requests a second, as they were without a drill

    def problem(self) -> Problem | None:
        """What the status says while a drill is under way."""
        if (running := self._running) is None:
            return None
        what = f"{running.fault} of {running.name}" if running.name else running.fault
        return Problem(
            safety.SUBJECT, f"{running.id} is under way: {what}, by {running.by}", f"chatglm-hactl drill {running.id}"
        )

    # --- beginning ----------------------------------------------------------------------------------------------------

    async def plan(self, asked: DrillAsked, snapshot: Snapshot) -> DrillPlan:
        """What would be done, and why it could hurt. Raises NoSuch, and Refused for what cannot be done at all."""
        return (await self._prepare(asked, snapshot))[1]

    async def begin(self, asked: DrillAsked, snapshot: Snapshot, by: str) -> Sheet:
        """Begins it, and returns its first sheet. Raises NoSuch, Refused, Failed and Unavailable."""
        async with self._beginning:
            order, plan = await self._prepare(asked, snapshot)
            if plan.objections and not asked.force:
                raise _could_hurt(plan)
            await self._shelf.make()
            name = await self._shelf.next_name()
            order = replace(order, id=name, by=by, path=str(self._shelf.path_of(name)))
            how = f"{order.rate:g} prompts a second for {order.seconds:g} s at most"
            forced = f"forced although {'; '.join(plan.objections)}: " if plan.objections else ""
            self._note(order.fault, order.name, f"{name} begins: {forced}{plan.what}; {how}", by)
            await self._books.flush()
            try:
                await launch(order)
            except Declined as error:
                self._note(order.fault, order.name, error.detail)
                raise
            begun = await self.one(name)
            self._running = begun
            self._begun.set()
            return begun

    async def _prepare(self, asked: DrillAsked, snapshot: Snapshot) -> tuple[Order, DrillPlan]:
        await self._look()
        if (running := self._running) is not None:
            words = f"{running.id} is under way: {running.fault} by {running.by}"
            raise Refused(words, f"chatglm-hactl drill {running.id}")
        settings, fault = self._settings(), Fault(asked.fault)
        if settings.nginx.mode == "off":
            words = "nginx.mode is off: a drill sends its load through the gateway, and there is none"
            raise Refused(words, "chatglm-hactl config show")
        target = _target(fault, asked.name, snapshot)
        if snapshot.now_wall - self._last_end >= SPAN:  # else they are partly another drill's
            self._users_qps = snapshot.traffic.qps
        order = Order(
            id="",
            fault=fault,
            name=target.record.name if target is not None else None,
            by="",
            rate=asked.rate,
            spike_rate=SPIKE_TIMES * max(asked.rate, self._users_qps),
            seconds=asked.seconds if asked.seconds is not None else safety.seconds(fault, settings.hang_after),
            patience=settings.patience,
            limit=settings.limit,
            prompt=settings.prompt,
            dialect=settings.dialect,
            gateway=settings.gateway,
            host=OWN_NAME,
            socket=str(settings.socket.absolute()),
            path="",
        )
        order = await _aimed(order, target, settings)
        around = safety.Around(settings.nginx.mode, self._supervised, self._users_qps)
        pid = order.target.pid if order.target is not None else None
        return order, DrillPlan(
            fault=fault.value,
            name=order.name,
            rate=order.rate,
            seconds=order.seconds,
            what=safety.what(fault, order.name or "", pid, order.spike_rate),
            objections=safety.objections(fault, target, snapshot, around),
        )

    # --- showing ------------------------------------------------------------------------------------------------------

    async def all(self) -> list[Sheet]:
        """The newest first. Raises Unavailable."""
        return await self._shelf.read_all()

    async def one(self, name: str) -> Sheet:
        """Raises NoSuch and Unavailable."""
        found = await self._shelf.read(name)
        if found is None:
            raise NoSuch(f"there is no drill {name}", "chatglm-hactl drill")
        return found

    async def watch(self, name: str) -> AsyncGenerator[Sheet, None]:
        """The sheet now, and each time that it has changed, until the drill has ended. Raises NoSuch, Unavailable."""
        told: Sheet | None = None
        while True:
            found = await self.one(name)
            if found.state == RUNNING and not process_records.is_alive(found.process):
                await self._look()
                found = await self.one(name)
            if found != told:
                yield found
            if found.state != RUNNING:
                return
            told = found
            await asyncio.sleep(LOOK_S)

    async def call_off(self, name: str, by: str) -> Sheet:
        """Ends it, and undoes its fault. Raises NoSuch, Refused and Unavailable."""
        found = await self.one(name)
        if found.state != RUNNING:
            raise Refused(f"{name} has ended already: {found.sentence}", f"chatglm-hactl drill {name}")
        self._note(found.fault, found.name, f"{name} is called off", by)
        process_records.signal_process(found.process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALL_OFF_S):
                async for latest in self.watch(name):
                    found = latest
        return found

    # --- following ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follows the drill under way to its end, also one that an earlier daemon began, and writes its end down."""
        while True:
            self._begun.clear()
            try:
                await self._look()
            except Unavailable as error:
                log.warning("the sheets of the drills cannot be read", why=error.detail)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if self._running is not None else IDLE_S):
                    await self._begun.wait()

    def close(self) -> None:
        """Lets go of the shelf; a drill under way goes on."""
        self._shelf.close()

    async def _look(self) -> None:
        async with self._looking:
            running = None
            for found in await self._shelf.read_all(but=self._settled):
                latest = found
                if latest.state == RUNNING and not process_records.is_alive(latest.process):
                    latest = await self._clear_up(latest)
                if latest.state == RUNNING:
                    running = latest
                    continue
                self._settled.add(latest.id)
                self._last_end = max(self._last_end, latest.ended or 0.0)
                if not latest.noted:
                    self._note(latest.fault, latest.name, f"{latest.id} {latest.state}: {latest.sentence}")
                    await self._shelf.write(replace(latest, noted=True))
                    await self._shelf.prune()
            self._running = running

    async def _clear_up(self, dead: Sheet) -> Sheet:
        """After a drill that was killed: whom it may have stopped goes on."""
        latest = await self._shelf.read(dead.id)
        if latest is None or latest.state != RUNNING:  # it had written its end before it ended
            return latest or dead
        if latest.held is not None:
            held = latest.held
            await self._shelf.call(lambda: processes.go_on(processes.tree(held)))
        words = "the drill's own process was ended from outside"
        ended = replace(latest, state=FAILED, sentence=words, findings=(words,), ended=time.time(), held=None)
        await self._shelf.write(ended)
        return ended

    def _note(self, fault: str, name: str | None, words: str, by: str = "chatglm-ha") -> None:
        self._books.note(Note(name or _SUBJECTS.get(fault, "service"), "drill", words, by))


def _target(fault: Fault, name: str | None, snapshot: Snapshot) -> Judged | None:
    if fault not in OF_AN_INSTANCE:
        return None
    if name is None:
        chosen = safety.choose(snapshot)
        if chosen is None:
            raise Refused("no instance serves, so there is none to break", "chatglm-hactl status")
        return chosen
    found = next((judged for judged in snapshot.instances if judged.record.name == name), None)
    if found is None:
        raise no_such_instance(name, [judged.record.name for judged in snapshot.instances])
    return found


async def _aimed(order: Order, target: Judged | None, settings: DrillSettings) -> Order:
    """With the process that the signals go to, and where an instance takes the order to be sick. Raises Refused."""
    if order.fault is Fault.DAEMON:
        return replace(order, target=processes.identify(os.getpid()))
    if order.fault is Fault.GATEWAY:
        return replace(order, target=await aim.at_master(settings.nginx))
    if target is None:
        return order
    process, by_engine = aim.at_instance(target, order.fault, in_container=settings.in_containers)
    if by_engine:
        assert target.fact is not None
        order = replace(order, engine=settings.engine, container=target.fact.runtime_id)
    return replace(order, target=process, address=await _hooked(target) if order.fault is Fault.SICK else None)


async def _hooked(target: Judged) -> Address:
    """Where an instance takes the order to be sick. Raises Refused."""
    assert target.fact is not None
    address, name = target.fact.address, target.record.name
    why_not = await faults.offers_sickness(address)
    if why_not:
        raise Refused(
            f"{name} cannot be made sick: nobody can make a server answer errors from outside, and this one offers "
            f"no hook for it ({why_not}; docs/drills.md says what it is)",
            f"chatglm-hactl drill kill {name}",
        )
    return address


def _could_hurt(plan: DrillPlan) -> Refused:
    command = " ".join(filter(None, ["chatglm-hactl drill", plan.fault, plan.name, "--force"]))
    if len(plan.objections) == 1:
        return Refused(f"it could hurt: {plan.objections[0]}", command)
    return Refused(f"it could hurt, for {len(plan.objections)} reasons", command, plan.objections)
