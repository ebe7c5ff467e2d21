"""Runs one seed with all invariants watching; a violation tells its seed, its time and what led to it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import structlog

from hasupervisor.model import Address, Plan, Step
from tests.sim.host import Daemon, Host, Watch
from tests.sim.invariants import EVERY_CYCLE, EVERY_STEP, Moment
from tests.sim.ledger import Ledger
from tests.sim.schedule import Schedule, random_host
from tests.sim.users import Request


class Violation(Exception):
    """An invariant does not hold."""


class Judge(Watch):
    """Checks every invariant at every cycle and every step."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.ledger = Ledger(host)
        self.lost: Counter[str] = Counter()
        self._plan: Plan | None = None

    def started(self, daemon: Daemon) -> None:
        self.ledger.started()

    def cycled(self, daemon: Daemon, plan: Plan) -> None:
        self._plan = plan
        self.ledger.cycled(daemon)
        moment = Moment(self.host, self.ledger, daemon, plan)
        for sentence, check in EVERY_CYCLE:
            for wrong in check(moment):
                self.fault(sentence, wrong)
        self.ledger.routed_before = frozenset(route.name for route in plan.routing.routes)

    def stepped(self, daemon: Daemon, step: Step) -> None:
        self.ledger.forgive(daemon)
        self.ledger.lies()
        moment = Moment(self.host, self.ledger, daemon, self._plan or daemon.loop.latest)  # type: ignore[arg-type]
        for sentence, check in EVERY_STEP:
            for wrong in check(moment, step):
                self.fault(sentence, wrong)
        self.ledger.stepped(daemon, step)

    def launch_failed(self, name: str) -> None:
        self.ledger.launch_failed(name)

    def failed(self, request: Request, how: str) -> None:
        self.lost[how] += 1

    def let_go(self, request: Request, address: Address) -> None:
        life = self.host.dockerd.at(address)
        if life is not None and not life.proven and life.runtime_id not in self.ledger.routed_at_start:
            sentence = "8: a request that waited is let go to somebody who is proven to serve"
            self.fault(
                sentence, f"a request that came at {request.came:.3f} goes to {life.name}, which has answered nobody"
            )

    def fault(self, sentence: str, wrong: str) -> None:
        host = self.host
        last = "\n".join(host.events)
        raise Violation(
            f"{last}\n\nseed {host.seed}, {host.hours:.2f} simulated hours in (t = {host.engine.now:.3f}):\n"
            f"  {wrong}\n  against invariant {sentence}\n"
            f"  replay: python -m tests.sim {host.seed} --hours {host.hours + 0.01:.2f} -v"
        )


@dataclass
class Result:
    """What one seed has shown."""

    seed: int
    hours: float = 0.0
    cycles: int = 0
    steps: int = 0
    episodes: int = 0
    answered: int = 0
    failed: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    violation: str | None = None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the daemon's log, which the host's own events tell better; afterwards it is as it was for other tests."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


def run_seed(seed: int, hours: float, *, verbose: bool = False) -> Result:
    """One seed, for so many simulated hours or until a violation; defects that raise are violations too."""
    began = time.process_time()
    host = random_host(seed, verbose=verbose)
    host.watch = judge = Judge(host)
    schedule = Schedule(host)
    violation: str | None = None
    try:
        with _quietly():
            schedule.run(hours)
    except Violation as error:
        violation = str(error)
    except Exception as error:  # a defect of decisions shows as any exception: it is told with its seed
        last = "\n".join(host.events)
        violation = f"{last}\n\nseed {seed}, t = {host.engine.now:.3f}: a cycle failed\n  {error!r}"
    fate = host.users.fate
    return Result(
        seed=seed,
        hours=host.hours,
        cycles=host.cycles,
        steps=host.steps,
        episodes=schedule.episodes,
        answered=fate.answered,
        failed=sum(judge.lost.values()),
        injected=schedule.injected,
        seconds=time.process_time() - began,
        violation=violation,
    )


def first_violation(seeds: Iterable[int], hours: float, processes: int = 2) -> Result | None:
    """The first violation that is found over the cores, and nothing after it; None: there is none."""
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        runs = pool.imap_unordered(partial(run_seed, hours=hours), seeds, chunksize=1)
        return next((result for result in runs if result.violation is not None), None)


def run_seeds(seeds: Iterable[int], hours: float, processes: int = 2) -> list[Result]:
    """Many seeds over the cores; the results in the order of the seeds."""
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return pool.starmap(run_seed, [(seed, hours) for seed in seeds], chunksize=1)
