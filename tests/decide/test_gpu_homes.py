"""Before an instance is ended by hand: whether it would find a card again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasupervisor.decide.gpu.homes import crowded, homeless
from hasupervisor.decide.plan import plan
from hasupervisor.model import Plan
from hasupervisor.model.gpu import CardRecord, DriverState, Gpus, Need, Quarantine
from tests.decide.gpu_facts import card, gpus, name, serving, uuid, wanted, world

BY_HAND = CardRecord(uuid(0), by_hand=Quarantine("loud fan", Need.WORD, 1.0, "boot-1", evicts=False))


def decided(at: Gpus) -> Plan:
    return plan(world([serving(1, 0), serving(2, 1)], at))


def quarantined(*others: int) -> Gpus:
    """Card 0 takes nobody any more; so many cards beside it, each as large as one instance and a half."""
    return gpus(*(card(n) for n in (0, *others)), records={uuid(0): BY_HAND})


def test_on_a_card_that_takes_newcomers_the_place_is_its_own_again() -> None:
    assert homeless(decided(gpus(card(0), card(1))), DriverState.OK, [name(1), name(2)]) is None


def test_on_a_card_that_takes_none_it_needs_room_elsewhere() -> None:
    full = decided(quarantined(1))
    assert full.room == 0
    why = homeless(full, DriverState.OK, [name(1), name(2)])
    assert why is not None
    assert why.startswith("chatglm-01 would find no GPU again: no GPU has 13.0 GB for it: GPU 0: ")
    assert homeless(full, DriverState.OK, [name(2)]) is None
    assert homeless(decided(quarantined(1, 2)), DriverState.OK, [name(1)]) is None


def test_one_that_does_not_serve_has_nothing_to_lose() -> None:
    full = decided(quarantined(1))
    dead = replace(full, instances=tuple(replace(judged, fact=None) for judged in full.instances))
    assert homeless(dead, DriverState.OK, [name(1)]) is None


@pytest.mark.parametrize("state", [DriverState.WEDGED, DriverState.MISMATCHED, DriverState.FAILED])
def test_while_the_driver_does_not_work_nobody_starts_again(state: DriverState) -> None:
    why = homeless(decided(gpus(card(0), card(1), state=state)), state, [name(1)])
    assert why == f"chatglm-01 would find no GPU again: the driver is {state}"


def test_where_no_gpu_limits_them_nobody_is_homeless() -> None:
    absent = plan(world([serving(1)], gpus(state=DriverState.ABSENT)))
    assert homeless(absent, DriverState.ABSENT, [name(1)]) is None


def test_more_than_the_cards_have_room_for_is_told_with_what_is_missing() -> None:
    two = decided(gpus(card(0), card(1), card(2), card(3)))  # two of the four are taken
    assert [crowded(two, count) for count in (1, 2, 4)] == [None, None, None]
    assert crowded(two, 5) == "5 instances need 3 more places on the GPUs: there is room for 2 more"
    full = crowded(decided(gpus(card(0), card(1))), 3)
    assert full is not None
    assert full.startswith("3 instances need 1 more place on the GPUs: no GPU has 13.0 GB for it: GPU 0: ")


def test_one_that_waits_for_a_card_has_none_yet() -> None:
    waits = plan(world([serving(1, 0), wanted(2)], gpus(card(0))))
    assert waits.room == 0
    assert crowded(waits, 2) is not None
    assert crowded(waits, 1) is None


def test_no_card_limits_a_host_without() -> None:
    assert crowded(plan(world([serving(1)], gpus(state=DriverState.ABSENT))), 50) is None
    assert crowded(plan(world([serving(1)], None, None)), 50) is None
