"""A random schedule by seed: a host, then episodes of users, faults and commands, each followed by convergence."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hasupervisor.model import Colour, GpuPolicy, OperationState, Policy, State, Step
from hasupervisor.model.gpu import GB
from tests.sim.desk import WHO
from tests.sim.faults import CARD_FAULTS, COMMANDS, FAULTS, Fault
from tests.sim.host import Host
from tests.sim.lives import Life, Traits

SERVICE = "sim"


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
        host.run_until(host.engine.now + rng.expovariate(1 / 800.0))
        busy = rng.uniform(15.0, 80.0)
        if rng.random() < 0.85:
            host.users.come(host.users_rate * rng.choice((0.2, 0.6, 1.0)), busy)
        faults = FAULTS if host.board is None else (*FAULTS, *CARD_FAULTS)
        self._plan(faults, rng.choice((1, 1, 1, 2, 2, 3, 4)), busy)
        if rng.random() < 0.5:
            self._plan(COMMANDS, rng.choice((1, 1, 2, 3)), busy)
        host.run_until(host.engine.now + busy + rng.uniform(0.0, 30.0))
        if rng.random() < 0.2:
            host.run_until(host.engine.now + rng.uniform(60.0, 900.0))
        self._restore()
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
            host.board.restore()
        if host.desk.wants.pause is not None:
            host.desk.resume(host.daemon.loop)
        for name in sorted(host.desk.wants.drained):
            if self.rng.random() < 0.8:
                host.desk.undrain(host.daemon.loop, name, host.engine.now, host.wall())
        for life in host.lives():
            if life.stuck and self.rng.random() < 0.7:
                host.engine.after(self.rng.uniform(0.0, 60.0), lambda life=life: host.dockerd.let_go(life))  # type: ignore[misc]

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
        host = self.host
        daemon = host.daemon
        assert daemon is not None
        assert daemon.loop.latest is not None
        if host.policy.park_retry > 0:
            return
        told = {problem.subject for problem in daemon.loop.latest.problems}
        for name, record in daemon.loop.records().items():
            if record.parked_at is not None and name in told and not host.desk.busy(daemon.loop, (name,)):
                host.tell(f"COMMAND restart {name}, as it is parked for good")
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

    def unlike(self) -> list[str]:
        """What is not yet as wanted."""
        host, daemon = self.host, self.host.daemon
        if daemon is None or daemon.loop.latest is None or not daemon.loop.settled:
            return ["no daemon is at work"]
        records = daemon.loop.records()
        drained, desired = host.desk.wants.drained, host.desk.wants.desired
        staying = [r for r in records.values() if r.stuck is None and r.leaving is None]
        wrong = [f"{len(staying)} stay, {desired} are wanted"] if len(staying) != desired else []
        leaving = [(r.name, r.leaving.why) for r in records.values() if r.leaving is not None and not r.stuck]
        wrong += [f"{name} leaves: {why}" for name, why in leaving]
        serving: list[Life] = []
        for record in staying:
            life = host.dockerd.lives.get(record.name)
            if record.name in drained:
                wrong += [f"{record.name} is drained and {record.state}"] if life is not None else []
            elif life is None or not life.able or record.state is not State.SERVING:
                wrong.append(f"{record.name} is {record.state}, in truth {life.mode if life else 'absent'}")
            else:
                serving.append(life)
        wanted = frozenset(life.address for life in serving)
        if host.nginx.live != wanted or not daemon.gateway.at_rest:
            wrong.append(f"nginx routes {len(host.nginx.live)} of {len(wanted)}")
        running = [o for o in daemon.loop.operations if o.state is OperationState.RUNNING]
        wrong += [f"{o.kind} {o.id} goes on: {o.sentence}" for o in running]
        told = daemon.loop.latest
        calm = not drained and not any(r.stuck for r in records.values())
        if not wrong and calm and (told.health is not Colour.GREEN or told.problems):
            wrong.append(f"all is well, but it is shown as {told.health}: {told.problems}")
        return wrong


__all__ = ["Schedule", "Step", "random_host"]
