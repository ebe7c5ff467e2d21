"""One simulated host: dockerd, nginx, users and an operator around the real loop, whose daemon may die at any time."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hasupervisor.loop import PACE, Loop, Parts, Remembered
from hasupervisor.memory import cards
from hasupervisor.memory.rows import lasting
from hasupervisor.model import (
    Address,
    Note,
    Operation,
    Outcome,
    Phase,
    Plan,
    Policy,
    Record,
    State,
    Step,
    StepKind,
    Wants,
)
from hasupervisor.model.gpu import CardRecord
from tests.sim.cards import Board, SimCard
from tests.sim.desk import Desk
from tests.sim.dockerd import Dockerd
from tests.sim.endless import Endless
from tests.sim.engine import Engine, Timer
from tests.sim.lives import Life, Traits
from tests.sim.nginx import AccessLog, Gateway, Nginx
from tests.sim.senses import Hands, Picture, Prober
from tests.sim.users import Request, Users

WALL = 1_700_000_000.0 - 1000.0
"""Added to virtual monotonic time, it is the virtual wall clock."""

LONGEST_JUMP = 600.0
LONGEST_JUMP_BESIDE_WAITERS = 10.0


@dataclass
class Store:
    """Memory: what the disk keeps between two daemons."""

    tell: Callable[[str], None]
    wants: Wants | None = None
    records: dict[str, Record] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    cards: dict[str, CardRecord] = field(default_factory=dict)
    notes: int = 0
    _given: dict[str, Record] = field(default_factory=dict)  # those of the last time, as they were given

    def save_wants(self, wants: Wants) -> None:
        self.wants = wants

    def save_records(self, records: Iterable[Record], now: float, now_wall: float) -> None:
        given = {record.name: record for record in records}
        same = self._given
        self.records = {
            name: self.records[name] if same.get(name) is record else lasting(record) for name, record in given.items()
        }
        self._given = given

    def save_operation(self, operation: Operation) -> None:
        self.operations[operation.id] = operation
        if len(self.operations) > 50:
            del self.operations[next(iter(self.operations))]

    def save_cards(self, records: Iterable[CardRecord]) -> None:
        self.cards = {record.uuid: cards.lasting(record) for record in records}

    def note(self, note: Note, at_wall: float) -> None:
        self.notes += 1
        self.tell(f"  {note.subject}: {note.sentence}")


class Traffic:
    """TrafficSense over the access log."""

    def __init__(self, log: AccessLog) -> None:
        self._log = log

    def view(self, addresses: Sequence[Address]) -> Mapping[Address, object]:
        return self._log.view(list(addresses))


class Daemon:
    """One life of chatglm-had: a loop, its senses and its hands; all of them end with it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.alive = True
        self.began = host.engine.now
        self.settled_at: float | None = None
        engine, rng = host.engine, host.rng
        living: Callable[[], bool] = lambda: self.alive  # noqa: E731
        self.counted = lambda address: None if host.off else host.users.in_flight(address)
        self.picture = Picture(engine, host.dockerd, self.wake, living)
        self.log = AccessLog(engine, host.users.in_flight, host.idle_since)
        self.log.blind_until, self.log.off = host.blind_until, host.nginx.off
        policy = host.policy
        timing = (policy.interval, policy.timeout, policy.inference_timeout)
        find = host.dockerd.buried.get
        unaskable = host.dockerd.unaskable.__contains__
        self.prober = Prober(engine, rng, timing, find, self.counted, unaskable, self.wake, living)
        self.hands = Hands(engine, host.dockerd, self._took, self._begins, living)
        self.gateway = Gateway(engine, host.nginx, rng, host.users.room.prove, self.wake, living)
        self._tick: Timer | None = None
        self._last = float("-inf")
        parts = Parts(
            instances=self.picture,
            probes=self.prober,
            traffic=Traffic(self.log),  # type: ignore[arg-type]
            taken_ports=lambda ports: host.dockerd.taken_ports,
            hands=self.hands,
            gateway=self.gateway,
            memory=host.store,
            clock=engine.clock,
            wall=host.wall,
            random=random.Random(rng.random()),
            gpus=host.board.look if host.board is not None else None,
        )
        remembered = Remembered(
            wants=host.store.wants or host.first_wants,
            records=dict(host.store.records),
            operations=tuple(host.store.operations.values()),
            cards=dict(host.store.cards),
        )
        self.loop = Loop(parts, policy, remembered)
        self.wake()

    def kill(self) -> None:
        """SIGKILL: nothing is said, nothing is saved."""
        self.alive = False
        self.picture.close()

    def wake(self) -> None:
        """The next cycle is due now, PACE after the last one at least."""
        if self.alive:
            self._plan(max(self._last + PACE, self.host.engine.now))

    def _plan(self, when: float) -> None:
        if self._tick is not None and self._tick.act is not None:
            if self._tick.at <= when:
                return
            self._tick.cancel()
        self._tick = self.host.engine.at(when, self._cycle, soft=True)

    def _cycle(self) -> None:
        self._tick = None
        if not self.alive:
            return
        self._last = self.host.engine.now
        self.host.desk.time_passes(self.host.wall())
        plan = self.loop.cycle()
        if self.loop.settled and self.settled_at is None:
            self.settled_at = self.host.engine.now
        self._plan(self._last + max(PACE, plan.next_in))
        self.host.cycled(self, plan)

    def _took(self, outcome: Outcome) -> None:
        self.host.tell(f"{outcome.name}: {outcome.step} {'done' if outcome.ok else outcome.error}")
        if outcome.step == StepKind.START and outcome.error and not outcome.trouble:
            self.host.watch.launch_failed(outcome.name)
        self.loop.took(outcome)
        self.wake()

    def _begins(self, step: Step) -> None:
        self.host.tell(f"{step.name}: {step.kind} because {step.why}")
        self.host.stepped(self, step)

    def resume(self, skipped: float) -> None:
        """After a jump."""
        self._tick = None
        self.picture.resume(skipped)
        self.prober.resume(skipped)
        self.wake()


class Host:
    """Everything together. `watch` sees every cycle and every step: the invariants."""

    def __init__(
        self, seed: int, policy: Policy, traits: Traits, desired: int, cards: Sequence[int] = (), verbose: bool = False
    ) -> None:
        """`cards`: bytes of each; with a policy for GPUs there has to be one."""
        self.seed = seed
        self.policy = policy
        self.traits = traits
        self.verbose = verbose
        self.rng = random.Random(seed)
        self.engine = Engine()
        self.began = self.engine.now
        self.events: deque[str] = deque(maxlen=80)
        self.first_wants = Wants(desired)
        self.desk = Desk(self.first_wants)
        self.store = Store(self.tell)
        self.dockerd = Dockerd(self.engine, self.rng, traits, self.tell)
        self.board = self._board(cards)
        self.nginx = Nginx(self.engine)
        self.users = Users(self.engine, self.rng, self.nginx, self.dockerd, self._logged, self._failed, self._let_go)
        self.endless = Endless(self.dockerd, self.nginx, self.board)
        self.blind_until = 0.0
        self.users_rate = 1.0
        self.daemon: Daemon | None = None
        self.watch: Watch = Watch()
        self.cycles = 0
        self.steps = 0
        self._calm_cycles = 0
        self._there: frozenset[str] = frozenset()

    def _board(self, cards: Sequence[int]) -> Board | None:
        if self.policy.gpu is None:
            return None
        made = tuple(SimCard(index, total) for index, total in enumerate(cards))
        return Board(self.engine, self.rng, self.dockerd, self.policy.gpu, made, self._wake)

    def _wake(self) -> None:
        if self.daemon is not None:
            self.daemon.wake()

    # --- time --------------------------------------------------------------------------------------------------------

    def wall(self) -> float:
        return self.engine.now + WALL

    @property
    def hours(self) -> float:
        return (self.engine.now - self.began) / 3600.0

    def run_until(self, end: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Lets time pass until `done` says so (True) or `end` comes (False)."""
        self._calm_cycles = 0  # whoever calls may have changed something, which no cycle has seen yet
        self.engine.at(end, lambda: None)
        while self.engine.now < end:
            if done():
                return True
            if not self._jump(end):
                self.engine.step()
        return done()

    def _jump(self, end: float) -> bool:
        """Over idle time: when nothing happens and nothing is awaited, to the next thing that will."""
        daemon = self.daemon
        if self._calm_cycles < 3 or daemon is None:
            return False
        self._calm_cycles = 0
        now = self.engine.now
        longest = self._longest(daemon.loop)
        to = min(end, self.engine.next_hard() or end, now + longest, *self._deadlines(daemon.loop))
        if to - now < 2.0:
            return False
        self.engine.forget_soft()
        self.engine.now = to - 0.001
        daemon.resume(to - now)
        return True

    def _longest(self, loop: Loop) -> float:
        """Seconds; short where somebody waits for something whose end only the decisions know."""
        plan, waiters = loop.latest, (State.STARTING, State.LOADING, State.BACKOFF)
        waits = plan is not None and any(j.state in waiters for j in plan.instances)
        return LONGEST_JUMP_BESIDE_WAITERS if waits else LONGEST_JUMP

    def _deadlines(self, loop: Loop) -> list[float]:
        """When a decision will come out differently although nothing happens."""
        found: list[float] = []
        for record in loop.records().values():
            if record.retry_at is not None:
                found.append(record.retry_at)
            if record.parked_at is not None and self.policy.park_retry > 0:
                found.append(record.parked_at + self.policy.park_retry)
        found += [
            life.started_at + self.policy.start_timeout
            for life in self.dockerd.lives.values()
            if life.started_at is not None and life.alive and not life.loaded
        ]
        pause = loop.wants.pause
        if pause is not None and pause.until_wall is not None:
            found.append(pause.until_wall - WALL)
        return [at for at in found if at > self.engine.now]

    def _calm(self, daemon: Daemon, plan: Plan) -> bool:
        """Whether nothing moves: the next cycles would decide as this one did."""
        if plan.steps or plan.notes or self.users.active or self.users.rate or not daemon.loop.settled:
            return False
        if daemon.hands.acting() or not daemon.gateway.at_rest or not daemon.prober.at_rest or self.dockerd.down:
            return False
        if daemon.picture.view().trouble is not None:
            return False
        return all(self._still(judged.record.name, judged.state, daemon) for judged in plan.instances)

    def _still(self, name: str, state: State, daemon: Daemon) -> bool:
        life = self.dockerd.lives.get(name)
        if state in (State.BACKOFF, State.PARKED, State.STARTING):
            return life is None or life.stuck
        probe = daemon.prober.views().get(name)
        if life is None or probe is None or life.phase is not Phase.RUNNING or life.leaves or life.lie:
            return False
        if state is State.SERVING:
            return life.able and probe.failures == 0 and probe.successes >= self.policy.successes
        return state is State.LOADING and not life.loaded and not life.standing

    # --- the daemon --------------------------------------------------------------------------------------------------

    def start_daemon(self) -> None:
        if self.daemon is None:
            self.tell("the daemon starts")
            self.daemon = Daemon(self)
            self.watch.started(self.daemon)

    def kill_daemon(self) -> None:
        if self.daemon is not None:
            self.tell("the daemon is killed")
            self.watch.killed(self.daemon)
            self.daemon.kill()
            self.daemon = None
            self._calm_cycles = 0

    def cycled(self, daemon: Daemon, plan: Plan) -> None:
        self.cycles += 1
        there = frozenset(judged.record.name for judged in plan.instances)
        self.desk.forget(self._there - there)
        self._there = there
        self.watch.cycled(daemon, plan)
        self._calm_cycles = self._calm_cycles + 1 if self._calm(daemon, plan) else 0

    def stepped(self, daemon: Daemon, step: Step) -> None:
        self.steps += 1
        self.watch.stepped(daemon, step)

    # --- what is told ------------------------------------------------------------------------------------------------

    def tell(self, sentence: str) -> None:
        """A line for whoever reads how a violation came about."""
        line = f"{self.engine.now:12.3f}  {sentence}"
        self.events.append(line)
        if self.verbose:
            print(line, flush=True)

    def _logged(self, address: Address, took: float, ok: bool) -> None:
        if self.daemon is not None:
            self.daemon.log.line(address, took, ok=ok)

    def _failed(self, request: Request, how: str) -> None:
        tried = ", ".join(str(address.port) for address in request.tried) or "nobody"
        self.tell(f"a request that came at {request.came:.3f} {how}, tried {tried}")
        self.watch.failed(request, how)

    def _let_go(self, request: Request, address: Address) -> None:
        self.watch.let_go(request, address)

    @property
    def off(self) -> bool:
        """nginx.mode = "off": users of other hosts ask the instances themselves, and nobody here sees it."""
        return self.nginx.off

    def refused_cards(self) -> frozenset[str]:
        """UUIDs of those that are quarantined: they come back by a person's command."""
        held = self.store.cards.values()
        return frozenset(card.uuid for card in held if card.quarantine is not None or card.by_hand is not None)

    def idle_since(self, address: Address) -> float | None:
        life = self.dockerd.at(address)
        return life.idle_since if life is not None and self.traits.watched else None

    def lives(self) -> list[Life]:
        return list(self.dockerd.lives.values())


class Watch:
    """Sees everything and says nothing; the invariants are its kind."""

    def started(self, daemon: Daemon) -> None: ...

    def killed(self, daemon: Daemon) -> None: ...

    def cycled(self, daemon: Daemon, plan: Plan) -> None: ...

    def stepped(self, daemon: Daemon, step: Step) -> None: ...

    def launch_failed(self, name: str) -> None: ...

    def failed(self, request: Request, how: str) -> None: ...

    def let_go(self, request: Request, address: Address) -> None: ...

    def fault(self, sentence: str, wrong: str) -> None: ...
