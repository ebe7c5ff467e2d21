"""Samples the load after each cycle, and in mode auto lets the policy's opinion move the wanted count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from hasupervisor.decide import load
from hasupervisor.decide.autoscale.capacity import Slots
from hasupervisor.decide.autoscale.facts import Lesson, Load, Opinion, Rules, Sample, Situation
from hasupervisor.decide.autoscale.gpus import GpuUse, gpu_use
from hasupervisor.decide.autoscale.judge import Judge
from hasupervisor.decide.gpu.ledger import WAITS
from hasupervisor.loop import Loop, next_operation_id, running_operations
from hasupervisor.model import AUTOSCALER, Cause, Judged, Note, Operation, OperationKind, State, World

LOOK_EVERY = 0.9
"""Seconds between two looks at least: cycles come every second, and in bursts when something happens."""

OPINION_HOLDS = 2.0
"""Seconds for which an opinion is shown again, instead of being formed anew for everybody who asks."""

TOLD_HOLDS = 600.0
"""Seconds for which the most that an instance worked on while others queued in it is taken for what it carries."""

MET_AT_ONCE = 10.0
"""Seconds: an instance that was met later after its start was started by another daemon; how long that took is lost."""


class Requests(Protocol):
    """Requests for an answer that have ended since the daemon started."""

    @property
    def ended(self) -> int: ...
    @property
    def answered(self) -> int: ...
    @property
    def latency_s(self) -> float: ...
    @property
    def turned_away(self) -> int: ...


class Keeper(Protocol):
    def save_sample(self, sample: Sample, now: float, now_wall: float) -> None: ...
    def save_lessons(self, lessons: tuple[Lesson, ...], now: float, now_wall: float) -> None: ...


@dataclass(frozen=True)
class Senses:
    """What is sampled beside the instances, and where it is kept."""

    requests: Requests | None  # None: there is no gateway whose log could be read
    machine: Callable[[], tuple[float | None, float | None]]  # CPU and memory of the host, percent
    taken_ports: Callable[[range], frozenset[int]]
    keeper: Keeper
    clock: Callable[[], float]
    wall: Callable[[], float]
    decided: Callable[[str, str], None] = lambda direction, reason: None  # told of each decision, for metrics


@dataclass(frozen=True, slots=True)
class View:
    """What the autoscaler thinks and does, for people."""

    sentence: str
    opinions: Mapping[str, Opinion]  # by policy
    slots: Slots
    samples: int
    latest: Sample | None
    age_s: float | None  # of that


class Autoscaler:
    """`look` after every cycle; everything else is a question."""

    def __init__(self, loop: Loop, rules: Rules, senses: Senses) -> None:
        self._loop = loop
        self._senses = senses
        now = senses.clock()
        self.judge = Judge(rules, now)
        self._period = _Period(now)
        self._looked_at = -1e9
        self._before = _counts(senses.requests)
        self._told: tuple[int, float] = (0, now)
        self._load_seconds = 0.0
        self._opinions: tuple[float, Mapping[str, Opinion]] | None = None

    @property
    def load_seconds(self) -> float:
        """From start to serving, as last seen; 0: not seen yet."""
        return self._load_seconds

    def look(self) -> None:
        """Takes in what the cycle saw; samples and decides when it is time."""
        now, world = self._senses.clock(), self._loop.world
        if world is None or not world.settled or now - self._looked_at < LOOK_EVERY:
            return
        self._looked_at = now
        self._take(world, now)
        if now - self._period.began >= self.judge.rules.sample - LOOK_EVERY / 2:
            self._sample(now)
        if self.why_idle() is None:
            self._decide(now)
            self._senses.keeper.save_lessons(self.judge.lessons, now, self._senses.wall())

    def why_idle(self) -> str | None:
        """Why it does not act now, in words; None: it does."""
        wants, world = self._loop.wants, self._loop.world
        if not self.judge.rules.enabled:
            return "the autoscaler is off: autoscale.enabled = false"
        if wants.mode != "auto":
            return "set by hand (mode manual); `chatglm-hactl autoscale on` gives it back"
        if wants.pause is not None:
            return f"paused by {wants.pause.by}"
        if world is None or not world.settled:
            return "the daemon has just started and looks before it acts"
        if world.runtime.trouble is not None:
            return f"waits: {world.runtime.trouble}"
        running = running_operations(self._loop.operations)
        return f"waits for {running[0].id}: {running[0].sentence}" if running else None

    def view(self) -> View:
        now = self._senses.clock()
        opinions = self.opinions(now)
        idle, samples = self.why_idle(), self.judge.samples
        ours = opinions[self.judge.rules.policy]
        return View(
            sentence=f"holding {self._loop.wants.desired}: {idle}" if idle is not None else ours.sentence,
            opinions=opinions,
            slots=self.judge.slots(),
            samples=len(samples),
            latest=samples[-1] if samples else None,
            age_s=now - samples[-1].at if samples else None,
        )

    def opinions(self, now: float) -> Mapping[str, Opinion]:
        known = self._opinions
        if known is None or now - known[0] >= OPINION_HOLDS:
            known = self._opinions = (now, self.judge.opinions(self.situation(), now))
        return known[1]

    def situation(self) -> Situation:
        """How things stand after the latest cycle."""
        world, latest = self._loop.world, self._loop.latest
        judged = latest.instances if latest is not None else ()
        found = situation(judged, self._loop.wants.desired)
        if world is None:
            return found
        room, no_room = self._room(world)
        return replace(found, room=room, no_room=no_room, load_seconds=self._load_seconds)

    # --- looking ------------------------------------------------------------------------------------------------------

    def _take(self, world: World, now: float) -> None:
        judged = self._loop.latest.instances if self._loop.latest is not None else ()
        cards = self._loop.latest.cards if self._loop.latest is not None else ()
        serving = [one for one in judged if one.state is State.SERVING]
        loads = [load.in_flight(one.probe, one.traffic, world.policy, now) for one in serving]
        queued = float(world.gateway.held) + sum(_queued(one) for one in serving)
        known = [one for one in loads if one is not None]
        whole = sum(known) + world.gateway.held if len(known) == len(loads) else None
        self._period.add(whole, queued, known)
        self._period.add_gpus(gpu_use(cards, frozenset(one.record.name for one in serving), now))
        self.judge.looked(Load(now, whole, len(serving), self._wait(queued)))
        self._be_told(serving, now)
        self._time_starts(judged)

    def _wait(self, queued: float) -> float | None:
        """How long the queue takes to be answered at the pace of the last samples; None: nobody knows."""
        if not queued:
            return 0.0
        samples = self.judge.samples
        qps = samples[-1].qps if samples else None
        return queued / qps if qps else None

    def _be_told(self, serving: list[Judged], now: float) -> None:
        """An instance that lets requests queue works on as many as it can."""
        full = [p.in_flight for one in serving if one.probe and (p := one.probe.progress) and p.queued and p.in_flight]
        most, at = self._told
        if full and (max(full) >= most or now - at > TOLD_HOLDS):
            self._told = (max(full), now)
            self.judge.told = max(full)

    def _time_starts(self, judged: tuple[Judged, ...]) -> None:
        for one in judged:
            record, fact = one.record, one.fact
            if fact is None or fact.started_at is None or record.serving_since is None or record.met_at is None:
                continue
            if record.met_at - fact.started_at <= MET_AT_ONCE and record.serving_since > record.met_at:
                self._load_seconds = record.serving_since - fact.started_at

    def _sample(self, now: float) -> None:
        period, self._period = self._period, _Period(now)
        after = _counts(self._senses.requests)
        before, self._before = self._before, after
        judged = self._loop.latest.instances if self._loop.latest is not None else ()
        stands = situation(judged, self._loop.wants.desired)
        answered = after.answered - before.answered
        has_log, passed = self._senses.requests is not None, now - period.began
        cpu, memory = self._senses.machine()
        sample = Sample(
            at=now,
            serving=stands.serving,
            desired=stands.desired,
            starting=len(stands.starting),
            in_flight=_mean(period.in_flight),
            queued=_mean(period.queued),
            connections=_mean(period.per_instance),
            response_time_ms=1000.0 * (after.latency_s - before.latency_s) / answered if answered else None,
            gpu_utilization=_mean(period.gpu_utilization),
            qps=(after.ended - before.ended) / passed if has_log else None,
            turned_away=(after.turned_away - before.turned_away) / passed if has_log else None,
            cpu_percent=cpu,
            memory_percent=memory,
            gpu_memory_used_gb=period.gpus.used_gb,
            gpu_memory_total_gb=period.gpus.total_gb,
        )
        self.judge.sampled(sample)
        self._senses.keeper.save_sample(sample, now, self._senses.wall())

    def _room(self, world: World) -> tuple[int, str | None]:
        """How many more could exist, and with 0 of them why: by ports, and by the memory of the GPUs."""
        used = frozenset(record.port for record in self._loop.records().values())
        taken = used | self._senses.taken_ports(world.policy.ports)
        ports = sum(port not in taken for port in world.policy.ports)
        if not ports:
            return 0, "no free port is left in service.ports"
        plan = self._loop.latest
        if plan is None or plan.room is None:
            return ports, None
        if plan.room <= 0:
            return 0, (plan.no_room or "no GPU has room for it").removeprefix(WAITS)
        return min(ports, plan.room), None

    # --- acting -------------------------------------------------------------------------------------------------------

    def _decide(self, now: float) -> None:
        opinion = self.judge.decide(self.situation(), now)
        if opinion is None:
            return
        self._opinions = None
        before, wanted = self._loop.wants.desired, opinion.desired
        if wanted == before:
            if opinion.held_back_by is not None:
                self._senses.decided("held", "held back")
            return
        self._senses.decided("up" if wanted > before else "down", opinion.reason)
        operation = Operation(
            id=next_operation_id(self._loop.operations),
            kind=OperationKind.SCALE,
            by=AUTOSCALER,
            started=now,
            started_wall=self._senses.wall(),
            total=wanted,
            sentence="begun",
            before=(("desired", before),),
        )
        note = Note("autoscale", "scale", opinion.sentence, AUTOSCALER)
        self._loop.want(replace(self._loop.wants, desired=wanted), note)
        self._loop.begin(operation)


def situation(judged: tuple[Judged, ...], desired: int) -> Situation:
    """Who serves, who comes, who goes, who cannot: what is stuck or given up is no capacity."""
    staying = [one for one in judged if not _goes_for_good(one) and one.record.stuck is None]
    by_state = {state: tuple(one.record.name for one in staying if one.state is state) for state in State}
    missing = max(0, desired - len(staying))
    healed = tuple(one.record.name for one in staying if one.state in (State.DRAINING, State.STOPPING))
    return Situation(
        desired=desired,
        serving=len(by_state[State.SERVING]),
        starting=(
            *by_state[State.LOADING],
            *by_state[State.STARTING],
            *by_state[State.BACKOFF],
            *(("a new one",) * missing),
        ),
        leaving=tuple(one.record.name for one in judged if _goes_for_good(one) and one.record.stuck is None),
        ailing=(*by_state[State.SUSPECT], *healed),
        parked=by_state[State.PARKED],
    )


@dataclass(frozen=True, slots=True)
class _Counts:
    ended: int = 0
    answered: int = 0
    latency_s: float = 0.0
    turned_away: int = 0


def _counts(requests: Requests | None) -> _Counts:
    if requests is None:
        return _Counts()
    return _Counts(requests.ended, requests.answered, requests.latency_s, requests.turned_away)


class _Period:
    """What was seen since the last sample; a look that did not know counts nowhere."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.in_flight: list[float] = []
        self.queued: list[float] = []
        self.per_instance: list[float] = []
        self.gpu_utilization: list[float] = []
        self.gpus = GpuUse()  # as last looked at

    def add(self, whole: float | None, queued: float, each: list[float]) -> None:
        if whole is not None:
            self.in_flight.append(whole)
            self.queued.append(queued)
            if each:
                self.per_instance.append(sum(each) / len(each))

    def add_gpus(self, use: GpuUse) -> None:
        self.gpus = use
        if use.utilization is not None:
            self.gpu_utilization.append(use.utilization)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _goes_for_good(judged: Judged) -> bool:
    leaving = judged.record.leaving
    return leaving is not None and leaving.cause is Cause.SCALE


def _queued(judged: Judged) -> float:
    progress = judged.probe.progress if judged.probe is not None else None
    return float(progress.queued) if progress is not None else 0.0
