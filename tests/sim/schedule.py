"""A random schedule by seed: a host, then episodes of users, faults and commands, each followed by convergence."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import replace

from hasupervisor.model import Cause, Colour, GpuPolicy, OperationState, Policy, Record, State, Step
from hasupervisor.model.gpu import GB
from tests.sim.commands import COMMANDS
from tests.sim.desk import WHO
from tests.sim.faults import CARD_FAULTS, FAULTS, Fault
from tests.sim.forever import ENDLESS_CARD_FAULTS, ENDLESS_FAULTS
from tests.sim.host import Host
from tests.sim.lives import Life, Traits

SERVICE = "sim"

QUIET = 3000.0
"""Seconds, in the mean, in which nothing goes wrong between two episodes."""

ENDLESS_SHARE = 0.4
"""Of the episodes have a fault that does not end by itself."""


def random_host(seed: int, *, verbose: bool = False) -> Host:
    """A host with a policy and a model server of its own, all drawn from the seed."""
    rng = random.Random(f"host {seed}")
    reports = rng.random() < 0.6
    hang_after = rng.uniform(20.0, 60.0)
    traits = Traits(
        reports=reports,
        listens_early=rng.random() < 0.6,
        behind_queue=not reports and rng.random() < 0.6,
        slots=rng.choice((1, 2, 4)),
        service=rng.choice((0.3, 1.0, 2.0)),
        load=rng.choice((2.0, 10.0, 30.0)),
        watched=rng.random() < 0.7,
    )
    policy = Policy(
        service=SERVICE,
        ports=range(8000, 8012),
        min=1,
        max=6,
        one_at_a_time=rng.random() < 0.6,
        failures=rng.choice((1, 2, 2, 3)),
        successes=rng.choice((1, 1, 2)),
        interval=rng.choice((1.0, 2.0)),
        timeout=rng.choice((1.0, 2.0)),
        start_timeout=rng.uniform(120.0, 400.0),
        hang_after=hang_after,
        inference_timeout=rng.choice((10.0, 20.0)),
        backoff=rng.choice((0.5, 1.0, 2.0)),
        backoff_max=rng.choice((30.0, 300.0)),
        attempts=rng.choice((3, 5)),
        window=rng.choice((300.0, 600.0)),
        park_retry=rng.choice((0.0, 300.0, 1800.0)),
        stop_grace=rng.choice((5.0, 30.0)),
        drain_timeout=rng.choice((20.0, 120.0)),
    )
    desired = rng.choice((1, 2, 2, 3, 3, 4, 5))
    gpu, cards = _cards(rng)
    host = Host(seed, replace(policy, gpu=gpu), traits, desired, cards, verbose=verbose)
    host.nginx.off = gpu is None and rng.random() < 0.5
    host.users_rate = rng.choice((0.5, 1.0, 2.0)) * traits.slots / traits.service / 2
    return host


def _cards(rng: random.Random) -> tuple[GpuPolicy | None, list[int]]:
    """Half of the hosts have GPUs: room for all that may ever be wanted at once, whichever of their cards is lost."""
    if rng.random() < 0.5:
        return None, []
    each = rng.choice((1, 2, 3))  # instances on one card
    need = rng.choice((6, 13))
    cards = [(each * need + 1) * GB] * (6 // each + rng.choice((0, 1, 2)))
    return GpuPolicy(need_bytes=need * GB, reserve_bytes=GB // 2), cards


class Schedule:
    """Lets a host live through its episodes."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.rng = random.Random(f"schedule {host.seed}")
        self.injected: Counter[str] = Counter()
        self.episodes = 0
        self._told: set[str] = set()  # names of which a person has been told what to do

    def run(self, hours: float) -> None:
        """`hours` of simulated time; raises a Violation as soon as something is wrong."""
        host = self.host
        host.start_daemon()
        self._converge("the first start")
        while host.hours < hours:
            self._episode()

    def _episode(self) -> None:
        host, rng = self.host, self.rng
        self.episodes += 1
        host.run_until(host.engine.now + rng.expovariate(1 / QUIET))
        busy = rng.uniform(15.0, 80.0)
        if rng.random() < 0.85:
            host.users.come(host.users_rate * rng.choice((0.2, 0.6, 1.0)), busy)
        faults = FAULTS if host.board is None else (*FAULTS, *CARD_FAULTS)
        self._plan(faults, rng.choice((1, 1, 2, 2, 3, 4)), busy)
        if rng.random() < ENDLESS_SHARE:
            endless = ENDLESS_FAULTS if host.board is None else (*ENDLESS_FAULTS, *ENDLESS_CARD_FAULTS)
            self._plan(endless, rng.choice((1, 1, 1, 2)), busy)
        if rng.random() < 0.5:
            self._plan(COMMANDS, rng.choice((1, 1, 2, 3)), busy)
        host.run_until(host.engine.now + busy + rng.uniform(0.0, 30.0))
        if rng.random() < 0.1:
            host.run_until(host.engine.now + rng.uniform(60.0, 900.0))
        self._restore()
        if host.endless.any:
            self._do_without()
            self._mend()
        self._converge("the faults stopped")

    def _plan(self, choices: Sequence[tuple[Fault, float]], count: int, within: float) -> None:
        names, weights = zip(*choices, strict=True)
        for act in self.rng.choices(names, weights, k=count):
            self.injected[act.__name__] += 1
            self.host.engine.after(self.rng.uniform(1.0, within), lambda act=act: act(self.host))  # type: ignore[misc]

    def _restore(self) -> None:
        """Faults stop; what is ill stays ill until it is healed. The operator ends what only a person can end."""
        host = self.host
        host.tell("the faults stop")
        host.dockerd.restore()
        host.nginx.restore()
        host.blind_until = 0.0
        host.start_daemon()
        assert host.daemon is not None
        host.daemon.log.blind_until = 0.0
        if host.board is not None:
            host.board.restore(but=host.endless.cards)
        if host.desk.wants.pause is not None:
            host.desk.resume(host.daemon.loop)
        for name in sorted(host.desk.wants.drained):
            if self.rng.random() < 0.8:
                host.desk.undrain(host.daemon.loop, name, host.engine.now, host.wall())
        for life in host.lives():
            if life.stuck and self.rng.random() < 0.7:
                host.engine.after(self.rng.uniform(0.0, 60.0), lambda life=life: host.dockerd.let_go(life))  # type: ignore[misc]

    def _do_without(self) -> None:
        """What does not end by itself stays: the rest converges, and a person is told what there is to do."""
        host = self.host
        bound = self._bound()
        self._told.clear()
        if not host.run_until(host.engine.now + bound, self._done_without):
            why = "; ".join(self._left_open()) or "nobody knows why"
            sentence = "10: what can be healed beside a fault without an end is healed, and a person is told the rest"
            host.watch.fault(sentence, f"{bound:.0f} s after the other faults stopped: {why}")

    def _done_without(self) -> bool:
        daemon = self.host.daemon
        if daemon is None or daemon.loop.latest is None or self.host.cycles == self._looked_at:
            return False
        self._looked_at = self.host.cycles
        self._told |= {problem.subject for problem in daemon.loop.latest.problems if problem.hint}
        self._help_the_parked()
        return not self._left_open()

    def _left_open(self) -> list[str]:
        """Who could be healed and is not yet, and who cannot while nobody has been told."""
        host, daemon = self.host, self.host.daemon
        if daemon is None or daemon.loop.latest is None or not daemon.loop.settled:
            return ["no daemon is at work"]
        held = host.refused_cards()
        hopeless = {name for name in daemon.loop.records() if host.endless.hopeless(name, held)}
        hopeless |= self._await_hung_worker() if "nginx" in self._told else set()
        told = self._told | self._await_hung_worker()
        untold = sorted(hopeless - told - host.desk.wants.drained)
        well = {life.name for life in host.lives() if life.able and life.address in host.nginx.live}
        return [f"nobody is told of {name}" for name in untold if name not in well] + self.unlike(but=hopeless)

    def _await_hung_worker(self) -> set[str]:
        """Whom a person wants out while a worker of nginx that hangs may still send it requests."""
        if self.host.nginx.hung is None or self.host.daemon is None:
            return set()
        leaving = [(r.name, r.leaving) for r in self.host.daemon.loop.records().values()]
        return {name for name, why in leaving if why is not None and why.cause is not Cause.HEAL}

    def _mend(self) -> None:
        """A person does what was asked for: sees to the cause, and now and then starts again what is parked."""
        host, daemon = self.host, self.host.daemon
        assert daemon is not None
        host.tell("a person mends what does not end by itself")
        host.endless.mend()
        if host.board is not None:
            host.board.restore()
        if self.rng.random() < 0.5:
            self._restart_a_parked_one()

    # --- 10: convergence ---------------------------------------------------------------------------------------------

    def _converge(self, after: str) -> None:
        host = self.host
        bound = self._bound()
        if not host.run_until(host.engine.now + bound, self._converged):
            why = "; ".join(self.unlike()) or "nobody knows why"
            sentence = "10: after the faults stop, the host converges without a person"
            host.watch.fault(sentence, f"{bound:.0f} s after {after}: {why}")

    def _bound(self) -> float:
        """Seconds within which everything must be well again."""
        p, traits = self.host.policy, self.host.traits
        one = traits.load * 1.4 * 30.0 + p.hang_after + p.drain_timeout + p.stop_grace + 60.0
        many = max(1, len(self.host.dockerd.lives), self.host.desk.wants.desired)
        return p.park_retry + p.backoff_max * 1.25 + p.start_timeout + many * one + 60.0

    def _converged(self) -> bool:
        """Asked often: the cheap questions come first."""
        daemon = self.host.daemon
        if daemon is None or not daemon.loop.settled or daemon.loop.latest is None:
            return False
        if self.host.cycles == self._looked_at:
            return False
        self._looked_at = self.host.cycles
        self._help_the_parked()
        self._clear_cards()
        return not self.unlike()

    _looked_at = -1

    def _help_the_parked(self) -> None:
        """Where nothing is tried again by itself and the daemon has said so, the person does as the hint says."""
        if self.host.policy.park_retry <= 0:
            self._restart_a_parked_one()

    def _restart_a_parked_one(self) -> None:
        host, daemon = self.host, self.host.daemon
        assert daemon is not None
        assert daemon.loop.latest is not None
        told = {problem.subject for problem in daemon.loop.latest.problems}
        for name, record in daemon.loop.records().items():
            hopeless = host.endless.hopeless(name)
            if (
                record.parked_at is not None
                and name in told
                and not hopeless
                and not host.desk.busy(daemon.loop, (name,))
            ):
                host.tell(f"COMMAND restart {name}, as it is parked")
                host.desk.restart(daemon.loop, (name,), host.engine.now, host.wall())
                return

    def _clear_cards(self) -> None:
        """The person has mended what was quarantined, sees that NVML shows it well again, and says so."""
        host, daemon = self.host, self.host.daemon
        assert daemon is not None
        for card in host.board.cards if host.board is not None else ():
            record = host.store.cards.get(card.uuid)
            seen_well = card.fact is not None and not card.fact.remap_failed
            if record is not None and record.quarantine is not None and seen_well:
                host.tell(f"COMMAND gpu clear {card.uuid}")
                daemon.loop.cards.clear(card.uuid, WHO)

    def unlike(self, but: Set[str] = frozenset()) -> list[str]:
        """What is not yet as wanted, `but` for those that cannot be as they should."""
        host, daemon = self.host, self.host.daemon
        if daemon is None or daemon.loop.latest is None or not daemon.loop.settled:
            return ["no daemon is at work"]
        records = daemon.loop.records()
        drained, desired = host.desk.wants.drained, host.desk.wants.desired
        staying = [r for r in records.values() if r.stuck is None and (r.leaving is None or _comes_back(r, but))]
        wrong = [f"{len(staying)} stay, {desired} are wanted"] if len(staying) != desired else []
        leaving = [(r.name, r.leaving.why) for r in records.values() if r.leaving is not None and not r.stuck]
        leaving = [(name, why) for name, why in leaving if name not in but]
        wrong += [f"{name} leaves: {why}" for name, why in leaving]
        serving: list[Life] = []
        for record in staying:
            life = host.dockerd.lives.get(record.name)
            if record.name in but:
                serving += [life] if life is not None and life.address in host.nginx.live else []
            elif record.name in drained:
                wrong += [f"{record.name} is drained and {record.state}"] if life is not None else []
            elif life is None or not life.able or record.state is not State.SERVING:
                wrong.append(f"{record.name} is {record.state}, in truth {life.mode if life else 'absent'}")
            else:
                serving.append(life)
        wanted = frozenset(life.address for life in serving)
        if host.nginx.live != wanted or not daemon.gateway.at_rest:
            wrong.append(f"nginx routes {len(host.nginx.live)} of {len(wanted)}")
        if but or host.endless.any:
            return wrong
        running = [o for o in daemon.loop.operations if o.state is OperationState.RUNNING]
        wrong += [f"{o.kind} {o.id} goes on: {o.sentence}" for o in running]
        told = daemon.loop.latest
        calm = not drained and not any(r.stuck for r in records.values())
        if not wrong and calm and (told.health is not Colour.GREEN or told.problems):
            wrong.append(f"all is well, but it is shown as {told.health}: {told.problems}")
        return wrong


def _comes_back(record: Record, but: Set[str]) -> bool:
    """Whether it is on its way out, cannot go, and is not wanted out for good."""
    return record.name in but and record.leaving is not None and record.leaving.cause is not Cause.SCALE


__all__ = ["Schedule", "Step", "random_host"]
