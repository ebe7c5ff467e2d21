"""The real loop and the real autoscaler on a small host in virtual time: instances that load, a load that is told."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from hasupervisor.autoscaler import Autoscaler, Senses
from hasupervisor.decide.autoscale.facts import Lesson, Rules, Sample
from hasupervisor.loop import Loop, Parts, Remembered
from hasupervisor.model import (
    Address,
    Fact,
    GatewayView,
    GpuPolicy,
    Note,
    Operation,
    Outcome,
    Phase,
    Policy,
    ProbeView,
    Progress,
    Record,
    Routing,
    RuntimeView,
    Said,
    Step,
    StepKind,
    TrafficView,
    Wants,
)
from hasupervisor.model.gpu import (
    GB,
    CardRecord,
    CardView,
    DriverState,
    DriverView,
    GpuFact,
    GpuProcess,
    Gpus,
    KernelLogView,
)

RULES = Rules(min=2, max=6, sample=10.0, evaluate=30.0, up_connections=5.0, down_connections=3.0)
GPU = GpuPolicy(need_bytes=13 * GB, reserve_bytes=0)
POLICY = Policy("chatglm", range(8000, 8010), 2, 6)


@dataclass
class Requests:
    ended: int = 0
    answered: int = 0
    latency_s: float = 0.0
    turned_away: int = 0


@dataclass
class Life:
    fact: Fact
    loads_until: float

    @property
    def pid(self) -> int:
        return self.fact.pid or 0


@dataclass
class Host:
    """Everything that the loop is handed, itself."""

    load_s: float = 5.0
    in_flight: float = 0.0  # requests in all instances: shared evenly
    queued: int = 0
    qps: float = 0.0  # requests that end a second
    known: bool = True  # False: nobody can tell what is in flight
    now: float = 1000.0
    lives: dict[str, Life] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    lessons: tuple[Lesson, ...] = ()  # as they are kept
    decided: list[tuple[str, str]] = field(default_factory=list)
    broken: bool = False  # starts fail
    cards: int | None = None  # GPUs of 40 GB; None: nobody looks
    utilization: float = 0.0  # of each of them, 0..1
    mute: frozenset[int] = frozenset()  # cards that do not answer any more
    foreign_ports: frozenset[int] = frozenset()
    trouble: str | None = None
    requests: Requests = field(default_factory=Requests)
    starting_at_once: int = 0

    def begin(self, rules: Rules = RULES, mode: str = "auto", desired: int = 2) -> None:
        traffic, gateway = Traffic(self), Gateway()
        parts = Parts(
            self, self, traffic, self.taken, self, gateway, Memory(self), lambda: self.now, self.wall, random.Random(1)
        )
        policy = POLICY
        if self.cards is not None:
            parts, policy = replace(parts, gpus=self.look), replace(POLICY, gpu=GPU)
        self.loop = Loop(parts, policy, Remembered(Wants(desired, mode)))
        senses = Senses(
            requests=self.requests,
            machine=lambda: (12.0, 34.0),
            taken_ports=self.taken,
            keeper=self,
            clock=lambda: self.now,
            wall=self.wall,
            decided=lambda direction, reason: self.decided.append((direction, reason)),
        )
        self.autoscaler = Autoscaler(self.loop, rules, senses)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += 1.0
            self.requests.ended += round(self.qps)
            self.loop.cycle()
            self.autoscaler.look()
            loading = [life for life in self.lives.values() if life.loads_until > self.now]
            self.starting_at_once = max(self.starting_at_once, len(loading))

    @property
    def desired(self) -> int:
        return self.loop.wants.desired

    def steps(self) -> list[str]:
        return [note.sentence for note in self.notes if note.subject == "autoscale"]

    def wall(self) -> float:
        return self.now + 1_800_000_000.0

    def taken(self, ports: range) -> frozenset[int]:
        return self.foreign_ports

    def look(self, facts: Sequence[Fact], records: Mapping[str, CardRecord]) -> Gpus:
        views = tuple(self._card(number) for number in range(self.cards or 0))
        driver = DriverView(DriverState.OK, "ok", 1.0, cards=views, asked_at=self.now)
        users = {life.pid: name for name, life in self.lives.items()}
        return Gpus(driver, KernelLogView(readable=True), "boot-1", records, users=users)

    def _card(self, number: int) -> CardView:
        uuid = f"GPU-{number}"
        processes = tuple(GpuProcess(life.pid, 13 * GB) for life in self.lives.values() if uuid in life.fact.gpus)
        free = (40 - 13 * len(processes)) * GB
        fact = GpuFact(
            uuid,
            number,
            "NVIDIA",
            f"0000:0{number}:00.0",
            seen_at=self.now,
            memory_total_bytes=40 * GB,
            memory_free_bytes=free,
            utilization=self.utilization,
            processes=processes,
            processes_at=self.now,
        )
        return CardView(uuid, number, fact, silent_since=self.now - 1 if number in self.mute else None)

    # --- instances and probes -----------------------------------------------------------------------------------------

    def view(self) -> RuntimeView:
        if self.trouble is not None:
            return RuntimeView(tuple(life.fact for life in self.lives.values()), 1.0, self.trouble, self.now)
        return RuntimeView(tuple(life.fact for life in self.lives.values()), self.now)

    def refresh(self) -> None: ...

    def follow(self, facts: Sequence[Fact]) -> None: ...

    def ask(self, name: str) -> None: ...

    def views(self) -> Mapping[str, ProbeView]:
        return {name: self._probe(life) for name, life in self.lives.items()}

    def _ready(self) -> list[Life]:
        return [life for life in self.lives.values() if life.loads_until <= self.now]

    def _probe(self, life: Life) -> ProbeView:
        if life.loads_until > self.now:
            return ProbeView(life.fact.runtime_id, Said.LOADING, answered_at=self.now)
        each = self.in_flight / max(1, len(self._ready()))
        progress = Progress(in_flight=round(each), queued=self.queued) if self.known else None
        return ProbeView(
            life.fact.runtime_id,
            Said.HEALTHY,
            answered_at=self.now,
            asked_at=self.now,
            successes=3,
            progress=progress,
            progressed_at=self.now,
            prompted_at=self.now,
            prompt_ok=True,
        )

    def save_sample(self, sample: Sample, now: float, now_wall: float) -> None:
        self.samples.append(sample)

    def save_lessons(self, lessons: tuple[Lesson, ...], now: float, now_wall: float) -> None:
        self.lessons = lessons

    # --- hands --------------------------------------------------------------------------------------------------------

    def acting(self) -> Mapping[str, str]:
        return {}

    def submit(self, step: Step) -> None:
        if step.kind is StepKind.START and self.broken:
            self.loop.took(Outcome(step.name, "start", False, self.now, "no such image"))
            return
        if step.kind is StepKind.START:
            address = Address("127.0.0.1", step.port)
            fact = Fact(
                step.name,
                f"{step.name}@{self.now}",
                Phase.RUNNING,
                address,
                address,
                started_at=self.now,
                pid=step.port,
                gpus=step.gpus,
            )
            self.lives[step.name] = Life(fact, self.now + self.load_s)
        else:
            self.lives.pop(step.name, None)
        self.loop.took(Outcome(step.name, step.kind.value, True, self.now))


class Traffic:
    """What the kernel shows."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def view(self, addresses: Sequence[Address]) -> Mapping[Address, TrafficView]:
        return {address: TrafficView(in_flight_known=self._host.known) for address in addresses}


class Gateway:
    """nginx that takes over at once whatever is wanted."""

    def __init__(self) -> None:
        self.routing = Routing()

    def want(self, routing: Routing) -> None:
        self.routing = routing

    def prove(self, proofs: Mapping[Address, float], blameless: Set[Address] = frozenset()) -> None: ...

    def view(self) -> GatewayView:
        live = frozenset(route.address for route in self.routing.routes)
        return GatewayView(generation=1, live_generation=1, live=live, servers=len(live))

    def on_disk(self) -> frozenset[Address]:
        return frozenset()


class Memory:
    """Keeps notes."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def save_wants(self, wants: Wants) -> None: ...

    def save_records(self, records: Iterable[Record], now: float, now_wall: float) -> None: ...

    def save_operation(self, operation: Operation) -> None: ...

    def save_cards(self, records: Iterable[CardRecord]) -> None: ...

    def note(self, note: Note, at_wall: float) -> None:
        self._host.notes.append(note)
