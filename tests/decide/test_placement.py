"""The table of placement without GPUs: who may start, and who has to wait for whom. With GPUs: test_gpu_ledger.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from hasupervisor.decide.gpu.ledger import Account, Ledger
from hasupervisor.decide.health import stale_after
from hasupervisor.decide.placement import LATE_AT_LEAST, free_name, free_port, known_load, overdue
from hasupervisor.decide.plan import plan
from hasupervisor.model import Outcome, Progress, Seen, StepKind
from hasupervisor.model.gpu import DriverState
from tests.decide import gpu_facts
from tests.decide.facts import NOW, POLICY, decided, gone, hung, instance, loading, one, probed, steps
from tests.decide.gpu_facts import name

TWICE = 40.0  # the instances of these tests take 20 s to load
LATE, IN_TIME = TWICE + 1.0, TWICE - 1.0
LIMIT = POLICY.start_timeout


def unasked(seen: Seen, seconds: float = 500.0) -> Seen:
    """Nobody could put a question to it for so long."""
    return probed(seen, answered_at=NOW - seconds, ended_at=NOW - seconds)


def reached_past_the_gateway(seen: Seen) -> Seen:
    """It does not answer its prompt yet, but its own count of users' work moves."""
    return probed(seen, progress=Progress(in_flight=1, steps=7), progressed_at=NOW - 0.2)


def cannot_be_ended(seen: Seen) -> Seen:
    return replace(seen, record=replace(seen.record, stuck="cannot be ended"))


TABLE: dict[str, tuple[Sequence[Seen], bool]] = {
    # the last of them is to be started: may it?
    "nobody loads": ([instance(1), gone(2)], True),
    "another loads": ([instance(1), loading(2, IN_TIME), gone(3)], False),
    "another is being started": ([instance(1), replace(gone(2), acting="start"), gone(3)], False),
    "another was started, and no list shows it yet": (
        [instance(1), replace(gone(2), outcomes=(Outcome(name(2), "start", ok=True, at=NOW),)), gone(3)],
        False,
    ),
    "another loads for too long, somebody serves": ([instance(1), loading(2, LATE), gone(3)], False),
    "another loads for too long, nobody serves": ([hung(1), loading(2, LATE), gone(3)], True),
    "another loads in time, nobody serves": ([hung(1), loading(2, IN_TIME), gone(3)], False),
    "the same, of one that has never served": ([hung(1), loading(2, LATE), gone(3, load_s=None)], False),
    "nobody can ask the other, which may load": ([instance(1), unasked(loading(2, LIMIT - 1.0)), gone(3)], False),
    "nobody can ask the other, and its load is over": ([instance(1), unasked(loading(2, LIMIT + 1.0)), gone(3)], True),
    "the next answer of the other is merely late, and its load is over": (
        [instance(1), unasked(loading(2, LIMIT + 1.0), stale_after(POLICY) + 1.0), gone(3)],
        False,
    ),
    "nobody can ask the other, its load is over, nobody serves, and it has never served": (
        [hung(1), unasked(loading(2, LIMIT + 1.0)), gone(3, load_s=None)],
        True,
    ),
    "another is past its time, and is left alone since users reach it": (
        [instance(1), reached_past_the_gateway(loading(2, LIMIT + 1.0)), gone(3)],
        True,
    ),
    "another is past its time, and is about to be ended": ([instance(1), loading(2, LIMIT + 1.0), gone(3)], False),
    "no load was ever seen": ([loading(1, LATE, load_s=None), gone(2, load_s=None)], False),
}


@pytest.mark.parametrize("case", TABLE)
def test_may_it_start_when(case: str) -> None:
    instances, expected = TABLE[case]
    found = decided(instances)
    who = name(len(instances))
    assert (steps(found).get(who) is StepKind.START) is expected, one(found, len(instances)).reason


def test_without_one_at_a_time_nobody_waits() -> None:
    found = decided([instance(1), loading(2, 5.0), gone(3)], replace(POLICY, one_at_a_time=False))
    assert steps(found) == {name(3): StepKind.START}


def test_of_two_that_wait_the_one_that_waits_longest_starts() -> None:
    found = decided([gone(1), instance(2), gone(3, waits_since=NOW - 9.0)])
    assert steps(found) == {name(3): StepKind.START}
    assert one(found, 1).reason == f"waits until {name(3)} has loaded: one loads at a time"


def test_a_load_that_is_usually_short_has_some_seconds_all_the_same() -> None:
    quick = [instance(1, load_s=1.0)]
    assert overdue([*quick, loading(2, LATE_AT_LEAST - 0.1, load_s=1.0)], NOW) == {name(1)}
    assert name(2) in overdue([*quick, loading(2, LATE_AT_LEAST + 0.1, load_s=1.0)], NOW)


def test_loads_take_what_the_middle_one_of_those_seen_took() -> None:
    assert known_load(s.record for s in (instance(1), instance(2, load_s=70.0), instance(3, load_s=None))) == 20.0
    assert known_load(instance(n, load_s=took).record for n, took in ((1, 5.0), (2, 240.0), (3, 15.0))) == 15.0
    assert known_load([]) is None


def test_on_a_card_too_a_loader_that_is_over_its_time_is_not_waited_for() -> None:
    account = Account(gpu_facts.card(0, 80), tenants=(name(1),), loading=(name(1),), free_bytes=79 * gpu_facts.GB)
    books = Ledger(gpu_facts.POLICY, gpu_facts.driver(account.card, state=DriverState.OK), (account,))
    assert books.place(name(2)).why_not == f"waits until {name(1)} has loaded on GPU 0: one loads at a time on a GPU"
    assert books.place(name(2), beside=frozenset({name(1)})).gpus == (gpu_facts.uuid(0),)


@pytest.mark.parametrize("left_alone", [unasked, reached_past_the_gateway, cannot_be_ended])
def test_on_a_card_too_a_loader_that_healing_does_not_end_is_not_waited_for(left_alone: Callable[[Seen], Seen]) -> None:
    def placed(seen: Seen) -> Seen:
        assert seen.fact is not None
        return replace(seen, fact=replace(seen.fact, gpus=(gpu_facts.uuid(0),)))

    instances = [placed(instance(1)), left_alone(placed(loading(2, LIMIT + 1.0))), gone(3)]
    found = plan(gpu_facts.world(instances, gpu_facts.gpus(gpu_facts.card(0, 80))))
    assert steps(found).get(name(3)) is StepKind.START, one(found, 3).reason


def test_names_and_ports_are_the_lowest_that_are_free() -> None:
    assert free_name(POLICY, frozenset({name(1), name(3)})) == name(2)
    assert free_port(POLICY, frozenset({8000, 8002})) == 8001
    assert free_port(POLICY, frozenset(POLICY.ports)) is None
