"""The table of scaling: from the wanted count to names that come and names that go. Who goes first: test_victims.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from hasupervisor.decide.scaling import adopt, membership
from hasupervisor.model import Cause, Fact, Leaving, Phase, Seen, Wants, World
from tests.decide.facts import NOW, POLICY, instance, world_of
from tests.decide.gpu_facts import name

ONE, TWO, THREE = name(1), name(2), name(3)


def goes(number: int, **changes: object) -> Seen:
    return instance(number, leaving=Leaving(Cause.SCALE, "scaled down to 1", NOW - 50.0, **changes))  # type: ignore[arg-type]


TABLE: dict[str, tuple[Sequence[Seen], int, set[str], set[str]]] = {
    # there are; wanted; who stays; who leaves
    "as many as are wanted": ([instance(1), instance(2)], 2, {ONE, TWO}, set()),
    "one too few": ([instance(1)], 2, {ONE, TWO}, set()),
    "one too few, a gap in the names": ([instance(1), instance(3)], 3, {ONE, TWO, THREE}, set()),
    "one too many": ([instance(1), instance(2)], 1, {ONE}, {TWO}),
    "one too many, which leaves already": ([instance(1), goes(2)], 1, {ONE}, {TWO}),
    "one that leaves is wanted again": ([instance(1), goes(2)], 2, {ONE, TWO}, set()),
    "one that leaves is told to end already": (
        [instance(1), replace(goes(2), acting="stop")],
        2,
        {ONE, THREE},
        {TWO},
    ),
    "one that cannot be ended is no capacity": ([instance(1), instance(2, stuck="stuck")], 2, {ONE, TWO, THREE}, set()),
    "one that is healed is still wanted": (
        [instance(1), instance(2, leaving=Leaving(Cause.HEAL, "sick", NOW))],
        2,
        {ONE},
        {TWO},
    ),
    "nobody is wanted": ([instance(1)], 0, set(), {ONE}),
}


def sides(instances: Sequence[Seen]) -> tuple[set[str], set[str]]:
    leaving = {s.record.name for s in instances if s.record.leaving is not None}
    return {s.record.name for s in instances} - leaving, leaving


@pytest.mark.parametrize("case", TABLE)
def test_who_stays_and_who_leaves_with(case: str) -> None:
    instances, wanted, stay, leave = TABLE[case]
    assert sides(membership(world_of(instances, wants=Wants(wanted))).instances) == (stay, leave)


def test_the_names_and_ports_of_strangers_are_not_taken() -> None:
    world = world_of([], wants=Wants(1), taken_names=frozenset({ONE}), taken_ports=frozenset({8000}))
    (new,) = membership(world).instances
    assert (new.record.name, new.record.port) == (TWO, 8001)


def test_without_a_free_port_it_is_said_and_nobody_is_made() -> None:
    world = world_of([], replace(POLICY, ports=range(8000, 8001)), wants=Wants(2))
    made = membership(world)
    assert len(made.instances) == 1
    assert made.problem == "no free port is left in service.ports"


def test_what_runs_and_nobody_remembers_is_adopted() -> None:
    fact = instance(1).fact
    assert isinstance(fact, Fact)
    world = world_of([])
    world = replace(world, runtime=replace(world.runtime, facts=(replace(fact, phase=Phase.RUNNING),)))
    (adopted,) = adopt(world).instances
    assert (adopted.record.name, adopted.record.port, adopted.fact) == (ONE, 8001, fact)


# --- who wants fewer --------------------------------------------------------------------------------------------------


def leaving_of(world: World) -> Leaving:
    return next(s.record.leaving for s in membership(world).instances if s.record.leaving is not None)


@pytest.mark.parametrize(("mode", "patient"), [("auto", True), ("manual", False)])
def test_what_the_autoscaler_lets_go_is_not_hurried_and_what_a_person_scales_down_is(mode: str, patient: bool) -> None:
    assert leaving_of(world_of([instance(1), instance(2)], wants=Wants(1, mode=mode))).patient is patient


def test_a_person_who_scales_hurries_what_the_autoscaler_has_let_go_from_then_on() -> None:
    leaves = goes(2, patient=True, unrouted_since=NOW - 49.0)
    hurried = leaving_of(world_of([instance(1), leaves], wants=Wants(1, mode="manual")))
    assert (hurried.patient, hurried.since, hurried.unrouted_since) == (False, NOW, NOW)
    left = leaving_of(world_of([instance(1), leaves], wants=Wants(1, mode="auto")))
    assert (left.patient, left.unrouted_since) == (True, NOW - 49.0)
