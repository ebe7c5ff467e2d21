"""The cycle: one snapshot of the world, one pure decision, its steps handed out, its outcome remembered and shown.

Everything that touches the outside is handed in behind a small Protocol, time included, so that a whole host can be
simulated around this very loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from hasupervisor.cardbook import CardBook, CardMemory, GpuLook
from hasupervisor.decide.health import is_late, progressed_at
from hasupervisor.decide.plan import plan
from hasupervisor.descriptors import LogThrottle, is_exhausted
from hasupervisor.model import (
    Address,
    Cause,
    Fact,
    GatewayView,
    Judged,
    Note,
    Operation,
    OperationState,
    Outcome,
    Phase,
    Plan,
    Policy,
    ProbeView,
    Record,
    Routing,
    RuntimeView,
    Seen,
    State,
    Step,
    TrafficView,
    Wants,
    World,
)
from hasupervisor.model.gpu import CardRecord

log = structlog.get_logger(__name__)

SETTLE = 10.0
"""Seconds after the first list by which everybody has been asked; who has not answered by then is judged as it is."""

PACE = 0.01
"""Seconds between two cycles at least: a burst of events is one cycle."""

KEEP_OPERATIONS = 50


class InstanceSense(Protocol):
    def view(self) -> RuntimeView: ...
    def refresh(self) -> None: ...


class ProbeSense(Protocol):
    def follow(self, facts: Sequence[Fact]) -> None: ...
    def views(self) -> Mapping[str, ProbeView]: ...
    def ask(self, name: str) -> None: ...


class TrafficSense(Protocol):
    def view(self, addresses: Sequence[Address]) -> Mapping[Address, TrafficView]: ...


class TakenPorts(Protocol):
    def __call__(self, ports: range) -> frozenset[int]: ...


class IdleSense(Protocol):
    def __call__(self, name: str, pid: int | None) -> float | None:
        """Since when the processes of that instance have used no CPU; None: they do, or nobody knows."""


class Hands(Protocol):
    def acting(self) -> Mapping[str, str]: ...
    def submit(self, step: Step) -> None: ...


class GatewayHand(Protocol):
    def want(self, routing: Routing) -> None: ...
    def prove(self, proofs: Mapping[Address, float], blameless: Set[Address] = frozenset()) -> None: ...
    def view(self) -> GatewayView: ...
    def on_disk(self) -> frozenset[Address]: ...


class Memory(CardMemory, Protocol):
    """Keeps what must survive a restart; never blocks, and says so itself when it cannot write."""

    def save_wants(self, wants: Wants) -> None: ...
    def save_records(self, records: Iterable[Record], now: float, now_wall: float) -> None: ...
    def save_operation(self, operation: Operation) -> None: ...
    def note(self, note: Note, at_wall: float) -> object: ...


def _nobody_knows(name: str, pid: int | None) -> float | None:
    return None


@dataclass(frozen=True)
class Parts:
    """What the loop looks through and acts with."""

    instances: InstanceSense
    probes: ProbeSense
    traffic: TrafficSense
    taken_ports: TakenPorts
    hands: Hands
    gateway: GatewayHand
    memory: Memory
    clock: Callable[[], float]
    wall: Callable[[], float]
    random: random.Random
    idle_since: IdleSense = _nobody_knows
    gpus: GpuLook | None = None  # None: nobody looks at GPUs


@dataclass
class Remembered:
    """The loop's only mutable state: what people want, and what is remembered of each name."""

    wants: Wants
    records: dict[str, Record] = field(default_factory=dict)
    operations: tuple[Operation, ...] = ()
    cards: dict[str, CardRecord] = field(default_factory=dict)  # by UUID
    is_first_start: bool = False  # nothing was remembered: what runs already is kept, even if it is more than wanted


class Loop:
    """Runs cycles. `cycle` is synchronous and takes milliseconds; `run` calls it every second and when woken."""

    def __init__(self, parts: Parts, policy: Policy, remembered: Remembered) -> None:
        self.policy = policy
        self.wants = remembered.wants
        self.operations = remembered.operations
        self.latest: Plan | None = None
        self.world: World | None = None
        self.settled = False
        self.cycles = 0
        self._parts = parts
        self._records = remembered.records
        self.cards = CardBook(remembered.cards, parts.gpus, parts.memory, self.record_note, self.wake)
        self._is_first_start = remembered.is_first_start
        self._outcomes: list[Outcome] = []
        self._listed_first: float | None = None
        self._wake = asyncio.Event()
        self._moved = asyncio.Condition()
        self._may_log = LogThrottle()
        self._strangers: frozenset[str] = frozenset()

    # --- what others tell the loop ------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something happened: the next cycle is due now."""
        self._wake.set()

    def took(self, outcome: Outcome) -> None:
        """A step ended; the next cycle learns how."""
        self._outcomes.append(outcome)
        self._parts.instances.refresh()
        self.wake()

    def strangers(self, names: frozenset[str]) -> None:
        """Names that are taken by others."""
        self._strangers = names

    def want(self, wants: Wants, note: Note) -> None:
        """A person (or the autoscaler) wants something else from now on."""
        self.wants = wants
        self._parts.memory.save_wants(wants)
        self.record_note(note)
        self.wake()

    def begin(self, operation: Operation) -> None:
        """A person's long command: the following cycles carry it out."""
        self._set_operations((*self.operations, operation))
        self.wake()

    def replace_operation(self, operation: Operation) -> None:
        """An operation that was moved by hand (cancelled, superseded)."""
        self._set_operations(tuple(operation if o.id == operation.id else o for o in self.operations))
        self.wake()

    def record_note(self, note: Note) -> None:
        """A line for the history and the log."""
        self._parts.memory.note(note, self._parts.wall())
        log.info(note.sentence, subject=note.subject, event_kind=note.event, by=note.by)

    def judged(self, name: str) -> Judged | None:
        """The latest judgement on one instance, or None if there is no such instance."""
        if self.latest is None:
            return None
        return next((j for j in self.latest.instances if j.record.name == name), None)

    def records(self) -> Mapping[str, Record]:
        """What is remembered of each name."""
        return self._records

    # --- the cycle ----------------------------------------------------------------------------------------------------

    async def run(self, fed: Callable[[Plan, float], None]) -> None:
        """Cycles until cancelled. `fed` is told of every finished cycle and its duration in seconds: the watchdog.

        Neither a cycle that fails nor a `fed` that fails ends it: the next one tries again.
        """
        while True:
            began = self._parts.clock()
            self._wake.clear()
            wait = 1.0
            try:
                decided = self.cycle()
            except Exception as error:
                self._say_failed(error, "a cycle failed; routing stays as it was, the next one tries again")
            else:
                wait = decided.next_in
                try:
                    fed(decided, self._parts.clock() - began)
                except Exception as error:
                    self._say_failed(error, "what follows a cycle failed; instances are looked after all the same")
                async with self._moved:
                    self._moved.notify_all()
            await asyncio.sleep(PACE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    def _say_failed(self, error: Exception, words: str) -> None:
        if not self._may_log((words, repr(error))):
            return
        if is_exhausted(error):
            log.error(f"{words}: {error.strerror}; chatglm-hactl doctor")
        else:
            log.exception(f"BUG: {words}")

    async def moved(self) -> None:
        """Waits for the end of the next cycle."""
        async with self._moved:
            await self._moved.wait()

    def cycle(self) -> Plan:
        """Looks, decides, hands out."""
        now, wall = self._parts.clock(), self._parts.wall()
        self._end_pause(wall)
        world = self._look(now, wall)
        decided = plan(world)
        self.world = world
        self._keep(decided, now, wall)
        for step in decided.steps:
            self._parts.hands.submit(step)
        if world.settled:
            self._parts.gateway.want(decided.routing)
            self._parts.gateway.prove(dict(decided.proofs), decided.blameless)
        for name in decided.prompts:
            self._parts.probes.ask(name)
        self.latest = decided
        self.cycles += 1
        return decided

    def _look(self, now: float, wall: float) -> World:
        runtime = self._parts.instances.view()
        running = [fact for fact in runtime.facts if fact.phase is Phase.RUNNING]
        alive = [fact.address for fact in runtime.facts if fact.phase in (Phase.RUNNING, Phase.PAUSED)]
        self._parts.probes.follow(running)
        probes = self._parts.probes.views()
        self._settle(runtime, running, probes, now)
        acting = self._parts.hands.acting()
        outcomes, self._outcomes = self._outcomes, []
        traffic = self._parts.traffic.view(alive)
        facts = {fact.name: fact for fact in runtime.facts}
        instances = tuple(
            Seen(
                record=record,
                fact=(fact := facts.get(name)),
                probe=probes.get(name),
                traffic=self._traffic_of(fact, probes.get(name), traffic, now),
                outcomes=tuple(o for o in outcomes if o.name == name),
                acting=acting.get(name),
            )
            for name, record in sorted(self._records.items())
        )
        return World(
            now=now,
            now_wall=wall,
            policy=self.policy,
            wants=self.wants,
            runtime=runtime,
            gateway=self._parts.gateway.view(),
            instances=instances,
            operations=self.operations,
            jitter=self._parts.random.random(),
            settled=self.settled,
            routed_at_start=self._parts.gateway.on_disk(),
            taken_names=self._strangers,
            taken_ports=self._taken_ports(facts.values(), moves=any(o.port_taken for o in outcomes)),
            gpus=self.cards.look(runtime.facts),
        )

    def _traffic_of(
        self, fact: Fact | None, probe: ProbeView | None, traffic: Mapping[Address, TrafficView], now: float
    ) -> TrafficView:
        """What users get of an instance; of one that gives no sign of life, also whether it uses the CPU."""
        if fact is None:
            return TrafficView()
        view = traffic.get(fact.address, TrafficView())
        if probe is None or not _gives_no_sign(probe, view, self.policy, now):
            return view
        return replace(view, idle_since=self._parts.idle_since(fact.name, fact.pid))

    def _taken_ports(self, facts: Iterable[Fact], *, moves: bool) -> frozenset[int]:
        """Ports of the range that strangers listen on; asked only when an instance may have to be made, or `moves`."""
        staying = [r for r in self._records.values() if r.stuck is None and not _goes_for_good(r)]
        if len(staying) >= self.wants.desired and not moves:
            return frozenset()
        ours = frozenset(fact.endpoint.port for fact in facts)
        return self._parts.taken_ports(self.policy.ports) - ours

    def _settle(
        self, runtime: RuntimeView, running: Sequence[Fact], probes: Mapping[str, ProbeView], now: float
    ) -> None:
        """The daemon acts once it has seen the list and has asked everybody in it."""
        if self.settled or runtime.listed_at is None:
            return
        if self._listed_first is None:
            self._listed_first = now
            self._want_first(len(running))
        asked = all(_was_asked(probes.get(fact.name), self.policy) for fact in running)
        self.settled = asked or now - self._listed_first >= SETTLE

    def _want_first(self, running: int) -> None:
        """Losing the memory loses no service: without one, as many are wanted as run, if that is more."""
        if not self._is_first_start:
            return
        desired = max(self.wants.desired, running)
        why = "as many run already" if desired > self.wants.desired else "service.instances of the configuration"
        self.want(replace(self.wants, desired=desired), Note("service", "scale", f"{desired} wanted at first: {why}"))

    def _keep(self, decided: Plan, now: float, wall: float) -> None:
        """Remembers what the plan decided, and writes down what changed."""
        records = {j.record.name: j.record for j in decided.instances}
        self._parts.memory.save_records(records.values(), now, wall)  # what is unchanged costs nothing there
        gone, self._records = self._records.keys() - records.keys(), records
        self._forget(gone)
        self.cards.keep(decided.cards)
        self._set_operations(decided.operations)
        for note in decided.notes:
            self.record_note(note)

    def _forget(self, gone: Set[str]) -> None:
        """A drain by hand ends with its instance: whoever bears the name later is another one."""
        if drained := self.wants.drained & gone:
            self.wants = replace(self.wants, drained=self.wants.drained - drained)
            self._parts.memory.save_wants(self.wants)

    def _set_operations(self, operations: tuple[Operation, ...]) -> None:
        known = {o.id: o for o in self.operations}
        for operation in operations:
            before = known.get(operation.id)
            if before is not operation and before != operation:  # ended ones come back as they are, every cycle
                self._parts.memory.save_operation(operation)
        self.operations = operations[-KEEP_OPERATIONS:]

    def _end_pause(self, wall: float) -> None:
        pause = self.wants.pause
        if pause is not None and pause.until_wall is not None and wall >= pause.until_wall:
            note = Note("service", "resume", f"the pause of {pause.by} has run out")
            self.want(replace(self.wants, pause=None), note)


def _goes_for_good(record: Record) -> bool:
    return record.leaving is not None and record.leaving.cause is Cause.SCALE


QUIET_WORK = 2.0
"""Seconds without progress of reported work after which its CPU use is looked at."""


QUIET_TRAFFIC = 0.5
"""The same for the requests of users in it: from then on a late answer to a probe may be a hang."""


def _gives_no_sign(probe: ProbeView, traffic: TrafficView, policy: Policy, now: float) -> bool:
    """Whether its CPU use has to be known; from its first late answer on, so that it is when the second one is."""
    if probe.failures or is_late(probe, policy, now):
        return True
    moved = progressed_at(probe, traffic)
    if traffic.in_flight and (moved is None or now - moved >= QUIET_TRAFFIC):
        return True
    works = probe.progress is not None and probe.progress.in_flight + probe.progress.queued > 0
    return works and probe.progressed_at is not None and now - probe.progressed_at >= QUIET_WORK


def _was_asked(probe: ProbeView | None, policy: Policy) -> bool:
    return probe is not None and (probe.said is not None or probe.failures >= policy.failures)


def next_operation_id(operations: Iterable[Operation]) -> str:
    """ "op-8", when the last one was op-7."""
    numbers = [int(o.id.removeprefix("op-")) for o in operations if o.id.removeprefix("op-").isdigit()]
    return f"op-{max(numbers, default=0) + 1}"


def running_operations(operations: Iterable[Operation]) -> tuple[Operation, ...]:
    """Those that are still being carried out."""
    return tuple(o for o in operations if o.state is OperationState.RUNNING)


def serves(judged: Judged) -> bool:
    """Whether an instance serves users now."""
    return judged.state is State.SERVING
