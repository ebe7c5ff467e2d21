"""An instance that could not be ended: left alone while it lives, cleared away once it is gone or has ended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasupervisor.decide.gate import Gate, Turn
from hasupervisor.decide.repair import STUCK_RETRY, advance
from hasupervisor.model import (
    Address,
    Fact,
    Outcome,
    Phase,
    Policy,
    Record,
    Seen,
    State,
    StepKind,
    Verdict,
    VerdictKind,
)
from tests.decide.facts import NOW, decided, gone, steps

POLICY = Policy(service="chatglm", ports=range(8000, 8100), min=1, max=4)
HERE = Address("127.0.0.1", 8000)
STUCK = Record("chatglm-01", 8000, state=State.PARKED, stuck="cannot be ended: it is in D state", acted_at=100.0)
DEAD = Verdict(VerdictKind.DEAD, "killed by signal 9")


def turn(phase: Phase | None, now: float, *outcomes: Outcome, old: bool = False) -> Turn:
    fact = Fact("chatglm-01", "4711@1", phase, HERE, HERE, exit_code=-9) if phase is not None else None
    gate = Gate(now=now, now_wall=1e9, jitter=0.5, policy=POLICY, list_is_old=old)
    return advance(Seen(STUCK, fact=fact, outcomes=outcomes), DEAD, gate)


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.PAUSED, Phase.REMOVING])
def test_it_is_left_alone_while_it_is_there(phase: Phase) -> None:
    after = turn(phase, 100.0 + 10 * STUCK_RETRY)
    assert (after.step, after.state, after.reason) == (None, State.PARKED, STUCK.stuck)


def test_what_it_left_is_cleared_away_once_it_has_ended() -> None:
    after = turn(Phase.EXITED, 100.0 + STUCK_RETRY)
    assert after.step is not None
    assert (after.step.kind, after.step.runtime_id) == (StepKind.CLEAR, "4711@1")
    assert after.record.stuck is None


def test_the_next_try_comes_a_minute_after_the_last_one() -> None:
    assert turn(Phase.EXITED, 100.0 + STUCK_RETRY - 1.0).step is None
    failed = Outcome(
        "chatglm-01", "clear", ok=False, at=100.0 + STUCK_RETRY, error="device or resource busy", stuck=True
    )
    again = turn(Phase.EXITED, failed.at + 1.0, failed)
    assert (again.step, again.record.stuck) == (None, "cannot be ended: device or resource busy")
    assert replace(again.record, stuck=None).acted_at == failed.at


def test_once_it_is_gone_it_is_started_anew() -> None:
    after = turn(None, 101.0)
    assert after.record.stuck is None
    assert after.step is not None
    assert after.step.kind is StepKind.START


def test_an_old_list_proves_nothing() -> None:
    assert turn(None, 101.0, old=True).record.stuck is not None
    assert turn(Phase.EXITED, 100.0 + STUCK_RETRY, old=True).record.stuck is not None


def test_one_that_is_gone_at_last_and_its_stand_in_are_started_one_after_the_other() -> None:
    """Found by the simulator: the one that was stuck is waited for again from the moment that it is started."""
    was_stuck = gone(1, stuck="cannot be ended: it is in D state", acted_at=NOW - 100.0)
    found = decided([was_stuck, gone(2)])
    assert list(steps(found).values()) == [StepKind.START]
