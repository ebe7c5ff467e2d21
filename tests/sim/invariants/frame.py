"""What a check looks at, and the two lists that checks are put on: after every cycle, and when a step begins.

A function yields what is wrong, in words. What the loop believes is never asked: the truth is the simulated host's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hasupervisor.model import Cause, Plan, Step
from tests.sim.host import Daemon, Host
from tests.sim.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Moment:
    """What one check looks at: the host, what the checks remember, and the cycle or step that was just decided."""

    host: Host
    ledger: Ledger
    daemon: Daemon
    plan: Plan

    @property
    def now(self) -> float:
        return self.host.engine.now


Check = Callable[[Moment], Iterator[str]]
StepCheck = Callable[[Moment, Step], Iterator[str]]

EVERY_CYCLE: list[tuple[str, Check]] = []
EVERY_STEP: list[tuple[str, StepCheck]] = []


def cycle(sentence: str) -> Callable[[Check], Check]:
    """An invariant that is checked after every cycle."""

    def register(check: Check) -> Check:
        EVERY_CYCLE.append((sentence, check))
        return check

    return register


def step(sentence: str) -> Callable[[StepCheck], StepCheck]:
    """An invariant that is checked when a step begins."""

    def register(check: StepCheck) -> StepCheck:
        EVERY_STEP.append((sentence, check))
        return check

    return register


def moved_by_hand(m: Moment, name: str) -> bool:
    record = m.daemon.loop.records().get(name)
    leaving = record.leaving if record is not None else None
    by_hand = leaving is not None and leaving.cause is not Cause.HEAL
    return by_hand or name in m.daemon.loop.wants.drained
