"""The table of rollout: where a person's long command stands, by what has become of the instances that it moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from hasupervisor.decide.rollout import Standing, begin, progress
from hasupervisor.model import Cause, Leaving, Operation, OperationKind, OperationState, Seen, State, Wants
from tests.decide.facts import NOW, gone, instance, world_of
from tests.decide.gpu_facts import name

ONE, TWO = name(1), name(2)
DONE, FAILED, RUNNING = OperationState.DONE, OperationState.FAILED, OperationState.RUNNING
SCALE, RESTART, DRAIN, UNDRAIN = OperationKind
LEAVES = Leaving(Cause.SCALE, "scaled down", NOW)
ID = "op-1"


def operation(kind: OperationKind, *targets: str, total: int | None = None, **changes: object) -> Operation:
    count = len(targets) if total is None else total
    before = tuple((target, 0) for target in targets)
    made = Operation(ID, kind, "ann", NOW, 1.7e9, targets, count, before=before)
    return replace(made, **changes)  # type: ignore[arg-type]


def stands(number: int, state: State = State.SERVING, *, exists: bool = True, **record: object) -> Standing:
    return Standing(instance(number, **record).record, state, "its reason", exists)


Case = tuple[Operation, Sequence[Standing], OperationState, str]

TABLE: dict[str, Case] = {
    "scale: all serve": (operation(SCALE, total=2), [stands(1), stands(2)], DONE, "2 of 2 serving"),
    "scale: one loads": (
        operation(SCALE, total=2),
        [stands(1), stands(2, State.LOADING)],
        RUNNING,
        f"1 of 2 serving; {TWO}: its reason",
    ),
    "scale: one still drains": (
        operation(SCALE, total=1),
        [stands(1), stands(2, State.DRAINING, leaving=LEAVES)],
        RUNNING,
        f"1 of 1 serving; {TWO} drains",
    ),
    "scale: the only one that is missing is given up": (
        operation(SCALE, total=2),
        [stands(1), stands(2, State.PARKED, parked_at=NOW)],
        FAILED,
        f"1 of 2 serving; {TWO} is its reason",
    ),
    "scale: there is no port for another": (
        operation(SCALE, total=2),
        [stands(1)],
        RUNNING,
        "1 of 2 serving; no free port is left in service.ports",
    ),
    "restart: it serves, and is the old life": (
        operation(RESTART, ONE),
        [stands(1)],
        RUNNING,
        f"0 of 1 restarted; {ONE}: its reason",
    ),
    "restart: the new life serves": (operation(RESTART, ONE), [stands(1, restarts=1)], DONE, "1 of 1 restarted"),
    "restart: the next has its turn": (
        operation(RESTART, ONE, TWO),
        [stands(1, restarts=1), stands(2)],
        RUNNING,
        f"1 of 2 restarted; {TWO}: its reason",
    ),
    "restart: its new life fails": (
        operation(RESTART, ONE),
        [stands(1, State.BACKOFF, failures=(NOW,))],
        FAILED,
        f"0 of 1 restarted; stopped at {ONE}: its reason",
    ),
    "restart: it was scaled away": (
        operation(RESTART, ONE),
        [stands(2)],
        RUNNING,
        f"{ONE} is no longer wanted: passed over",
    ),
    "drain: it still works": (
        operation(DRAIN, ONE),
        [stands(1, State.DRAINING)],
        RUNNING,
        f"{ONE}: its reason",
    ),
    "drain: it is out and stopped": (
        operation(DRAIN, ONE),
        [stands(1, State.PARKED, exists=False)],
        DONE,
        f"{ONE} is drained and stopped",
    ),
    "drain: it cannot be ended": (
        operation(DRAIN, ONE),
        [stands(1, State.PARKED, stuck="cannot be ended")],
        FAILED,
        f"{ONE}: its reason",
    ),
    "undrain: it serves": (operation(UNDRAIN, ONE), [stands(1)], DONE, f"{ONE} serves again"),
    "undrain: it loads": (operation(UNDRAIN, ONE), [stands(1, State.LOADING)], RUNNING, f"{ONE}: its reason"),
    "undrain: it is given up": (
        operation(UNDRAIN, ONE),
        [stands(1, State.PARKED, parked_at=NOW)],
        FAILED,
        f"{ONE} is its reason",
    ),
    "an ended one stays as it is": (operation(SCALE, total=9, state=FAILED), [], FAILED, ""),
}


@pytest.mark.parametrize("case", TABLE)
def test_where_it_stands_with(case: str) -> None:
    command, standings, state, sentence = TABLE[case]
    after = progress(command, {s.record.name: s for s in standings}, world_of([]))
    assert (after.state, after.sentence) == (state, sentence)
    assert (after.ended_wall is not None) is (state is not RUNNING and command.state is RUNNING)


def leaving(instances: Sequence[Seen]) -> dict[str, Cause]:
    return {s.record.name: s.record.leaving.cause for s in instances if s.record.leaving is not None}


def test_a_restart_of_all_marks_one_and_the_next_when_that_is_done() -> None:
    world = world_of([instance(1), instance(2)], operations=(operation(RESTART, ONE, TWO),))
    assert leaving(begin(world).instances) == {ONE: Cause.RESTART}
    world = world_of([instance(1), instance(2)], operations=(operation(RESTART, TWO),))
    assert leaving(begin(world).instances) == {TWO: Cause.RESTART}


def test_a_person_who_restarts_an_instance_forgives_its_failures() -> None:
    parked = gone(1, parked_at=NOW - 5.0, failures=(NOW - 9.0,))
    (seen,) = begin(world_of([parked], operations=(operation(RESTART, ONE),))).instances
    assert (seen.record.parked_at, seen.record.failures) == (None, ())


def test_a_cancelled_restart_takes_back_what_has_not_been_stopped() -> None:
    marked = instance(1, leaving=Leaving(Cause.RESTART, "restarted", NOW), operation=ID)
    cancelled = operation(RESTART, ONE, state=OperationState.CANCELLED)
    assert leaving(begin(world_of([marked], operations=(cancelled,))).instances) == {}


def test_a_drain_and_its_end_follow_what_people_want() -> None:
    drained = begin(world_of([instance(1)], wants=Wants(1, drained=frozenset({ONE}))))
    assert leaving(drained.instances) == {ONE: Cause.DRAIN}
    assert leaving(begin(replace(drained, wants=Wants(1))).instances) == {}
