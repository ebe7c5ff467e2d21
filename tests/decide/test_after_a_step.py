"""What is said of an instance between the end of a step and the first look at what it has done."""

from __future__ import annotations

import pytest

from hasupervisor.decide.gate import Gate
from hasupervisor.decide.repair import advance
from hasupervisor.model import Outcome, Policy, Record, Seen, State, Verdict, VerdictKind

POLICY = Policy(service="chatglm", ports=range(8000, 8100), min=1, max=4)
NOBODY = Verdict(VerdictKind.DEAD, "the runtime does not list it")
FROZEN = "waits: cannot reach dockerd: no answer in 5 s"


def told(state: State, step: str, asleep: str | None = None, ok: bool = True) -> str:
    record = Record("chatglm-01", 8000, state=state)
    outcome = Outcome("chatglm-01", step, ok=ok, at=99.9, error="" if ok else "no such image")
    gate = Gate(now=100.0, now_wall=1e9, jitter=0.5, policy=POLICY, asleep=asleep, list_is_old=True)
    turn = advance(Seen(record, outcomes=(outcome,)), NOBODY, gate)
    assert turn.step is None  # nobody has seen yet what the last one has done
    return turn.reason


@pytest.mark.parametrize(
    ("state", "step", "sentence"),
    [
        (State.STARTING, "start", "was started a moment ago, not seen running yet"),
        (State.STOPPING, "stop", "was told to end a moment ago, not seen to be gone yet"),
        (State.SUSPECT, "kill", "was told to end a moment ago, not seen to be gone yet"),
    ],
)
def test_after_a_step_an_operator_reads_what_was_done_and_what_is_not_seen_yet(
    state: State, step: str, sentence: str
) -> None:
    assert told(state, step) == sentence


def test_where_the_runtime_cannot_be_asked_that_is_what_is_said() -> None:
    assert told(State.STARTING, "start", asleep=FROZEN) == FROZEN


def test_after_a_start_that_failed_its_reason_is_said() -> None:
    assert "no such image" in told(State.STARTING, "start", ok=False)
