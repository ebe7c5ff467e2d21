"""GPUs in a whole cycle: who is started where, who is moved or restarted for a fault, and who is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasupervisor.decide.plan import plan
from hasupervisor.model import (
    Outcome,
    Pause,
    Plan,
    Poisoned,
    Said,
    State,
    StepKind,
    Wants,
)
from hasupervisor.model.gpu import GB, CardRecord, CardState, DriverState, Need, Quarantine
from tests.decide.gpu_facts import NOW, POLICY, card, gpus, incident, name, serving, uuid, wanted, world

LOST = CardRecord(uuid(0), Quarantine("it has fallen off the bus", Need.REBOOT, 1.0, "boot-1", fences=True))
WORN = CardRecord(uuid(0), Quarantine("no spare row is left", Need.REPAIR, 1.0, "boot-1"))


def starts(decided: Plan) -> dict[str, tuple[str, ...]]:
    return {step.name: step.gpus for step in decided.steps if step.kind is StepKind.START}


def kills(decided: Plan) -> list[str]:
    return [step.name for step in decided.steps if step.kind is StepKind.KILL]


def state(decided: Plan, number: int) -> State:
    return next(j.state for j in decided.instances if j.record.name == name(number))


def reason(decided: Plan, number: int) -> str:
    return next(j.reason for j in decided.instances if j.record.name == name(number))


# --- placement --------------------------------------------------------------------------------------------------------


def test_all_that_find_a_card_of_their_own_are_started_in_one_cycle() -> None:
    decided = plan(world([wanted(n) for n in (1, 2, 3)], gpus(card(0), card(1))))
    assert starts(decided) == {name(1): (uuid(0),), name(2): (uuid(1),)}
    assert reason(decided, 3).startswith("waits for a GPU: no GPU has 13.0 GB for it: GPU 0: 10.0 GB for newcomers")
    assert [set(one.instances) for one in decided.cards] == [{name(1)}, {name(2)}]


def test_on_one_card_the_second_waits_until_the_first_has_loaded() -> None:
    decided = plan(world([wanted(1), wanted(2)], gpus(card(0)), replace(POLICY, need_bytes=6 * GB)))
    assert starts(decided) == {name(1): (uuid(0),)}
    assert reason(decided, 2) == "waits until chatglm-01 has loaded on GPU 0: one loads at a time on a GPU"


def test_a_start_that_the_runtime_does_not_list_yet_holds_its_place() -> None:
    begun = wanted(1)
    begun = replace(
        begun,
        record=replace(begun.record, gpus=(uuid(0),), state=State.STARTING),
        outcomes=(Outcome(name(1), "start", ok=True, at=NOW),),
    )
    for seen in (begun, replace(begun, outcomes=(), acting="start")):
        decided = plan(world([seen, wanted(2)], gpus(card(0), card(1))))
        assert starts(decided) == {name(2): (uuid(1),)}


def test_a_start_that_failed_gives_its_place_back() -> None:
    failed = wanted(1)
    failed = replace(
        failed,
        record=replace(failed.record, gpus=(uuid(0),)),
        outcomes=(Outcome(name(1), "start", ok=False, at=NOW - 1.0, error="no such image"),),
    )
    assert starts(plan(world([failed, wanted(2)], gpus(card(0))))) == {name(2): (uuid(0),)}


def test_an_adopted_instance_keeps_the_card_that_the_runtime_names() -> None:
    decided = plan(world([serving(1, 1)], gpus(card(0), card(1))))
    assert decided.instances[0].record.gpus == (uuid(1),)
    assert [one.instances for one in decided.cards] == [(), (name(1),)]


def test_without_a_driver_instances_start_without_a_card_one_at_a_time() -> None:
    decided = plan(world([wanted(1), wanted(2)], gpus(state=DriverState.ABSENT)))
    assert starts(decided) == {name(1): ()}
    assert (decided.room, decided.problems) == (None, ())


def test_where_a_card_is_required_nothing_starts_without_one() -> None:
    at = gpus(state=DriverState.ABSENT)
    decided = plan(world([wanted(1), serving(2)], at, replace(POLICY, required=True)))
    assert starts(decided) == {}
    assert reason(decided, 1) == "waits for a GPU: the driver is absent"
    assert state(decided, 2) is State.SERVING


@pytest.mark.parametrize("trouble", [DriverState.WEDGED, DriverState.MISMATCHED, DriverState.FAILED])
def test_a_driver_in_trouble_starts_nothing_and_leaves_alone_what_runs(trouble: DriverState) -> None:
    decided = plan(world([serving(1, 0), wanted(2)], gpus(card(0), card(1), state=trouble)))
    assert decided.steps == ()
    assert state(decided, 1) is State.SERVING
    assert [problem.subject for problem in decided.problems][:1] == ["GPUs"]


# --- faults -----------------------------------------------------------------------------------------------------------


def test_an_instance_on_a_card_off_the_bus_is_fenced_at_once_and_its_card_quarantined() -> None:
    decided = plan(world([serving(1, 0), serving(2, 1)], gpus(card(0), card(1), card(2), incidents=[incident(79, 0)])))
    assert kills(decided) == [name(1)]
    assert {route.name for route in decided.routing.routes} == {name(2)}
    assert decided.cards[0].state is CardState.QUARANTINED
    assert decided.problems[0].subject == "GPU 0"
    assert "needs a reboot" in decided.problems[0].sentence


def test_all_instances_of_a_card_off_the_bus_are_fenced_together_and_that_is_no_common_cause() -> None:
    seen = [serving(1, 0), serving(2, 0), serving(3, 0), serving(4, 1)]
    at = gpus(card(0, 80), card(1, 80), card(2, 80), incidents=[incident(79, 0)])
    decided = plan(world(seen, at, replace(POLICY, need_bytes=6 * GB)))
    assert kills(decided) == [name(1), name(2), name(3)]
    assert not any("common cause" in problem.sentence for problem in decided.problems)


def test_the_moved_one_starts_on_another_card_though_the_lost_one_is_still_listed() -> None:
    moved = wanted(1)
    moved = replace(moved, record=replace(moved.record, gpus=(uuid(0),), ended=f"{name(1)}#1"))
    decided = plan(world([moved], gpus(card(0), card(1), records={uuid(0): LOST})))
    assert starts(decided) == {name(1): (uuid(1),)}


def test_an_instance_that_still_works_and_can_go_nowhere_is_left_serving_in_words() -> None:
    decided = plan(world([serving(1, 0), serving(2, 1)], gpus(card(0), card(1), records={uuid(0): LOST})))
    assert decided.steps == ()
    assert state(decided, 1) is State.SERVING
    assert reason(decided, 1).endswith("GPU 0 is given up: it has fallen off the bus, and no other GPU has room for it")


def test_one_that_waits_for_a_card_without_an_end_keeps_nobody_from_being_healed() -> None:
    """chatglm-01 was healed away from a card that is lost; chatglm-02, on the only other one, becomes sick."""
    waits = wanted(1)
    record = replace(
        waits.record, disturbed_at=NOW - 40.0, bad_since=NOW - 50.0, failures=(NOW - 40.0,), waits_since=NOW - 39.0
    )
    sick = serving(2, 1)
    assert sick.probe is not None
    words = "the last 9 requests failed: CUDA error"
    sick = replace(sick, probe=replace(sick.probe, said=Said.UNHEALTHY, unhealthies=5, reason=words, successes=0))
    at = gpus(card(0), card(1, processes={77: 13}), users={77: name(2)}, records={uuid(0): LOST})
    decided = plan(world([replace(waits, record=record), sick], at))
    assert state(decided, 2) is State.DRAINING
    assert reason(decided, 1).startswith("waits for a GPU")


def test_only_as_many_are_fenced_as_find_room_elsewhere() -> None:
    seen = [serving(1, 0), serving(2, 0)]
    at = gpus(card(0, 80), card(1), records={uuid(0): LOST})
    assert kills(plan(world(seen, at))) == [name(1)]


def test_when_no_healthy_card_is_left_a_dead_one_waits_and_says_why() -> None:
    decided = plan(world([wanted(1), serving(2, 1)], gpus(card(0), card(1), records={uuid(0): LOST})))
    assert decided.steps == ()
    assert reason(decided, 1) == (
        "waits for a GPU: no GPU has 13.0 GB for it: GPU 0: it has fallen off the bus; needs a reboot; "
        "GPU 1: 10.0 GB for newcomers"
    )


def test_one_that_can_still_work_is_drained_off_its_card_and_not_fenced() -> None:
    decided = plan(world([serving(1, 0), serving(2, 1)], gpus(card(0), card(1), card(2), records={uuid(0): WORN})))
    assert kills(decided) == []
    assert state(decided, 1) is State.DRAINING
    assert {route.name for route in decided.routing.routes} == {name(2)}


def test_of_two_that_can_still_work_one_moves_at_a_time_and_the_other_serves_on() -> None:
    seen = [serving(1, 0), serving(2, 0), serving(3, 1)]
    at = gpus(card(0, 80), card(1, 80), card(2, 80), records={uuid(0): WORN})
    decided = plan(world(seen, at))
    assert (state(decided, 1), state(decided, 2)) == (State.DRAINING, State.SERVING)
    assert reason(decided, 2).endswith(
        "it will be moved: GPU 0 is given up: no spare row is left; another is being restarted"
    )
    assert {route.name for route in decided.routing.routes} == {name(2), name(3)}


def test_the_last_one_that_serves_is_not_drained_off_a_card_on_which_it_still_works() -> None:
    decided = plan(world([serving(1, 0)], gpus(card(0), card(1), records={uuid(0): WORN})))
    assert (state(decided, 1), decided.steps) == (State.SERVING, ())
    assert reason(decided, 1).endswith("nobody else serves")


def test_a_pause_holds_what_a_card_would_have_moved() -> None:
    paused = Wants(2, pause=Pause("ann", 0.0))
    at = gpus(card(0), card(1), card(2), records={uuid(0): WORN})
    decided = plan(world([serving(1, 0), serving(2, 1)], at, wants=paused))
    assert (state(decided, 1), decided.steps) == (State.SERVING, ())


def test_the_process_that_met_a_fault_is_fenced_on_its_card_and_its_neighbour_is_not() -> None:
    at = gpus(card(0, 80), incidents=[incident(31, 0, name(1))])
    decided = plan(world([serving(1, 0), serving(2, 0)], at))
    assert kills(decided) == [name(1)]
    assert state(decided, 2) is State.SERVING
    assert decided.cards[0].state is CardState.OK


def test_a_life_that_met_a_fault_during_a_pause_is_ended_after_it_although_it_answers() -> None:
    seen = [serving(1, 0), serving(2, 1)]
    at = gpus(card(0), card(1), incidents=[incident(31, 0, name(1))])
    held = plan(world(seen, at, wants=Wants(2, pause=Pause("ann", 0.0))))
    assert held.steps == ()
    assert {route.name for route in held.routing.routes} == {name(2)}
    poisoned = held.instances[0].record
    assert poisoned.poisoned is not None
    again = world([replace(seen[0], record=poisoned), seen[1]], gpus(card(0), card(1)))
    assert kills(plan(again)) == [name(1)]


def test_a_new_life_is_not_held_for_the_fault_of_the_one_before() -> None:
    new = serving(1, 0)
    new = replace(new, record=replace(new.record, poisoned=Poisoned(f"{name(1)}#0", "GPU 0: a fault")))
    decided = plan(world([new], gpus(card(0))))
    assert (decided.steps, decided.instances[0].record.poisoned) == ((), None)


def test_a_fault_of_an_unknown_process_is_that_of_the_only_one_on_the_card() -> None:
    at = gpus(card(0), card(1), incidents=[incident(31, 0)])
    assert kills(plan(world([serving(1, 0), serving(2, 1)], at))) == [name(1)]


def test_a_fault_of_an_unknown_process_beside_others_restarts_nobody_and_a_prompt_decides() -> None:
    both = [serving(1, 0), serving(2, 0)]
    decided = plan(world(both, gpus(card(0, 80), incidents=[incident(31, 0)])))
    assert decided.steps == ()
    assert decided.prompts == {name(1), name(2)}
    strangers = gpus(card(0, processes={900: 2}), card(1), incidents=[incident(31, 0)])
    decided = plan(world([serving(1, 0), serving(2, 1)], strangers))
    assert (decided.steps, decided.prompts) == ((), frozenset({name(1)}))


def test_a_fault_of_a_stranger_restarts_nobody() -> None:
    at = gpus(card(0), incidents=[incident(31, 0, foreign=True)])
    decided = plan(world([serving(1, 0)], at))
    assert decided.steps == ()
    assert next(note.sentence for note in decided.notes if note.event == "gpu").endswith("the process is none of ours")


def test_a_card_that_somebody_else_has_is_neither_placed_on_nor_complained_of() -> None:
    at = gpus(card(0), card(1), incidents=[incident(79, 0)])
    decided = plan(world([wanted(1)], at, replace(POLICY, exclude=frozenset({"0"}))))
    assert starts(decided) == {name(1): (uuid(1),)}
    assert decided.problems == ()
    assert decided.cards[0].excluded


def test_mig_is_refused_with_words_and_a_next_command() -> None:
    split = card(0)
    assert split.fact is not None
    decided = plan(world([wanted(1)], gpus(replace(split, fact=replace(split.fact, mig=True)))))
    problem = decided.problems[0]
    assert problem.sentence == "is split by MIG, which is not supported: nothing is placed on it"
    assert problem.hint == "nvidia-smi -i 0 -mig 0, or name it in gpu.exclude"


def test_a_person_who_quarantines_a_card_moves_nobody_and_keeps_newcomers_off() -> None:
    held = CardRecord(uuid(0), by_hand=Quarantine("fan", Need.WORD, 1.0, "boot-1", "ann", evicts=False))
    decided = plan(world([serving(1, 0), wanted(2)], gpus(card(0, 80), card(1), records={uuid(0): held})))
    assert starts(decided) == {name(2): (uuid(1),)}
    assert state(decided, 1) is State.SERVING


def test_a_fault_of_a_card_that_nvml_never_listed_is_written_down() -> None:
    decided = plan(world([serving(1, 0)], gpus(card(0), incidents=[incident(79, 5)])))
    assert any("Xid 79 of a GPU that NVML does not list" in note.sentence for note in decided.notes)


def test_a_host_whose_gpus_nobody_looks_at_works_as_before() -> None:
    decided = plan(world([wanted(1), wanted(2)], None, None))
    assert starts(decided) == {name(1): ()}
    assert (decided.cards, decided.room, decided.no_room) == ((), None, None)


def test_an_instance_explains_its_card() -> None:
    decided = plan(world([serving(1, 0)], gpus(card(0), records={uuid(0): LOST})))
    line = next(line for line in decided.instances[0].explain if "GPU 0" in line and uuid(0) in line)
    assert line == f"on GPU 0 ({uuid(0)}), which is quarantined: it has fallen off the bus; needs a reboot"
