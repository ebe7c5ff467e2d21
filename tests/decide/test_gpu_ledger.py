"""The ledger: what is promised counts before it is used, cards are shared out, and a wait says what it is for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasupervisor.decide.gpu.judge import Judgement
from hasupervisor.decide.gpu.ledger import Ledger, Place, Tenant, ledger
from hasupervisor.model import GpuPolicy
from hasupervisor.model.gpu import GB, CardRecord, CardState, CardView, DriverState
from tests.decide.gpu_facts import POLICY, card, gpus, name, uuid

FINE = Judgement(CardRecord("any"), CardState.OK, None)


def books(
    *cards: CardView,
    tenants: tuple[Tenant, ...] = (),
    users: dict[int, str] | None = None,
    policy: GpuPolicy = POLICY,
    one_at_a_time: bool = True,
    state: DriverState = DriverState.OK,
    judgements: dict[int, Judgement] | None = None,
) -> Ledger:
    judged = [(one, (judgements or {}).get(one.index, FINE)) for one in cards]
    return ledger(gpus(*cards, state=state, users=users), judged, tenants, policy, one_at_a_time=one_at_a_time)


def fill(opened: Ledger, count: int) -> tuple[Ledger, list[str]]:
    """Places so many, each of which has loaded before the next comes."""
    places: list[str] = []
    for number in range(1, count + 1):
        place = opened.place(name(number))
        if not place.gpus:
            break
        places.append(place.gpus[0])
        opened = opened.promise(name(number), place.gpus)
        opened = replace(opened, accounts=tuple(replace(account, loading=()) for account in opened.accounts))
    return opened, places


def need(gb: float) -> GpuPolicy:
    return replace(POLICY, need_bytes=int(gb * GB))


def test_six_instances_of_13_gb_are_spread_over_six_of_eight_cards() -> None:
    _, places = fill(books(*(card(index) for index in range(8))), 6)
    assert len(set(places)) == 6


@pytest.mark.parametrize(("gb", "total", "fits"), [(13, 24, 1), (6, 24, 3), (13, 15, 1), (6, 15, 2), (13, 12, 0)])
def test_a_card_takes_as_many_as_its_memory_without_the_reserve_holds(gb: int, total: int, fits: int) -> None:
    _, places = fill(books(card(0, total), policy=need(gb)), 9)
    assert len(places) == fits


def test_a_second_instance_comes_to_a_card_only_when_every_card_has_one() -> None:
    _, places = fill(books(card(0), card(1), card(2), policy=need(6)), 5)
    assert len(set(places[:3])) == 3
    assert len(set(places)) == 3


def test_what_a_loading_instance_was_promised_is_not_promised_again() -> None:
    loads = Tenant(name(1), (uuid(0),), loads=True)
    opened = books(card(0, processes={100: 2}), tenants=(loads,), users={100: name(1)}, one_at_a_time=False)
    assert opened.accounts[0].outstanding_bytes == 11 * GB
    assert opened.place(name(2)).gpus == ()


def test_an_instance_that_uses_more_than_it_was_promised_counts_for_what_it_uses() -> None:
    has = Tenant(name(1), (uuid(0),), loads=False)
    opened = books(card(0, processes={100: 18}), tenants=(has,), users={100: name(1)}, policy=need(6))
    assert opened.place(name(2)).why_not == ("waits for a GPU: no GPU has 6.0 GB for it: GPU 0: 5.0 GB for newcomers")


def test_where_the_driver_does_not_tell_who_uses_how_much_a_loaded_instance_is_in_the_free_figure() -> None:
    used = replace(card(0, processes={100: None}))
    assert used.fact is not None
    used = replace(used, fact=replace(used.fact, memory_free_bytes=10 * GB))
    users = {100: name(1)}
    loaded, loads = (Tenant(name(1), (uuid(0),), loads=loads) for loads in (False, True))
    assert books(used, tenants=(loaded,), users=users, policy=need(6)).accounts[0].outstanding_bytes == 0
    assert books(used, tenants=(loads,), users=users, policy=need(6)).accounts[0].outstanding_bytes == 6 * GB


def test_one_start_at_a_time_on_a_card_and_others_at_once_on_others() -> None:
    opened = books(card(0), card(1), policy=need(6))
    opened = opened.promise(name(1), opened.place(name(1)).gpus)
    second = opened.place(name(2))
    assert second.gpus == (uuid(1),)
    opened = opened.promise(name(2), second.gpus)
    assert opened.place(name(3)).why_not == "waits until chatglm-01 has loaded on GPU 0: one loads at a time on a GPU"
    assert replace(opened, one_at_a_time=False).place(name(3)).gpus == (uuid(0),)


def test_a_start_waits_until_the_processes_of_before_have_left_the_card() -> None:
    opened = books(card(0, processes={100: 3}), users={100: name(1)})
    assert opened.place(name(1)).why_not == "waits until its processes of before have left GPU 0"
    assert opened.place(name(2)).gpus == (uuid(0),)


def test_a_foreign_process_keeps_newcomers_off_and_is_named() -> None:
    opened = books(card(0, processes={900: 20}))
    assert opened.place(name(1)).why_not == (
        "waits for a GPU: no GPU has 13.0 GB for it: GPU 0: 3.0 GB for newcomers, "
        "20.0 GB held by processes that are none of ours"
    )
    assert opened.room() == 0
    assert opened.no_room() == opened.place(name(1)).why_not


def test_memory_that_nobody_listed_holds_counts_as_used_and_is_named() -> None:
    leaked = card(0)
    assert leaked.fact is not None
    opened = books(replace(leaked, fact=replace(leaked.fact, memory_free_bytes=4 * GB)))
    assert "19.5 GB held by no living process" in str(opened.place(name(1)).why_not)


def test_of_equally_good_cards_it_gets_the_one_that_it_had() -> None:
    opened = books(card(0), card(1), card(2))
    assert opened.place(name(1), (uuid(2),)).gpus == (uuid(2),)
    there = Tenant(name(2), (uuid(2),), loads=False)
    assert books(card(0), card(1), card(2), tenants=(there,)).place(name(1), (uuid(2),)).gpus == (uuid(0),)


def test_a_throttled_card_is_taken_last() -> None:
    hot = replace(FINE, last=True)
    opened = books(card(0), card(1, processes={900: 4}), judgements={0: hot})
    assert opened.place(name(1)).gpus == (uuid(1),)


def test_no_healthy_card_is_left_says_what_is_the_matter_with_each() -> None:
    held = replace(FINE, state=CardState.QUARANTINED, reason="it has fallen off the bus (Xid 79); needs a reboot")
    mig = card(1)
    assert mig.fact is not None
    opened = books(
        card(0),
        replace(mig, fact=replace(mig.fact, mig=True)),
        card(2),
        judgements={0: held},
        policy=replace(POLICY, exclude=frozenset({"2"})),
    )
    assert opened.place(name(1)).why_not == (
        "waits for a GPU: no healthy GPU is left: GPU 0: it has fallen off the bus (Xid 79); needs a reboot; "
        "GPU 1: is split by MIG, which is not supported: nvidia-smi -i 1 -mig 0; GPU 2: left to others by gpu.exclude"
    )
    assert opened.roomiest() is None


@pytest.mark.parametrize("which", ["2", uuid(2)])
def test_a_card_is_excluded_by_its_index_or_uuid(which: str) -> None:
    opened = books(card(2), policy=replace(POLICY, exclude=frozenset({which})))
    assert opened.place(name(1)).gpus == ()


@pytest.mark.parametrize(
    ("state", "required", "place"),
    [
        (DriverState.UNKNOWN, False, Place(why_not="waits: the driver is unknown")),
        (DriverState.ABSENT, False, Place()),
        (DriverState.ABSENT, True, Place(why_not="waits for a GPU: the driver is absent")),
        (DriverState.WEDGED, False, Place(why_not="waits for a GPU: the driver is wedged")),
        (DriverState.MISMATCHED, False, Place(why_not="waits for a GPU: the driver is mismatched")),
        (DriverState.FAILED, False, Place(why_not="waits for a GPU: the driver is failed")),
    ],
)
def test_without_cards_instances_start_only_where_there_is_no_driver_and_none_is_required(
    state: DriverState, required: bool, place: Place
) -> None:
    opened = books(state=state, policy=replace(POLICY, required=required))
    assert opened.place(name(1)) == place
    assert (opened.room() is None) is (place == Place())


def test_a_driver_that_is_gone_where_cards_were_known_starts_nothing() -> None:
    assert books(card(0), state=DriverState.ABSENT).place(name(1)).gpus == ()
    assert books(card(0), state=DriverState.WEDGED).room() == 0


def test_the_room_counts_all_that_find_a_place_one_after_the_other() -> None:
    opened = books(card(0), card(1, processes={900: 10}), card(2, 12), policy=need(6))
    assert opened.room() == 3 + 2 + 1
    assert opened.no_room() is None


sizes = st.integers(1, 80)


@given(
    st.lists(st.tuples(sizes, st.integers(0, 80)), min_size=1, max_size=8),
    st.integers(1, 40),
    st.integers(0, 4),
    st.integers(1, 30),
)
def test_no_card_is_ever_promised_more_than_it_has(
    cards: list[tuple[int, int]], gb: int, reserve: int, count: int
) -> None:
    seen = [card(index, total, {900 + index: min(held, total)}) for index, (total, held) in enumerate(cards)]
    policy = GpuPolicy(gb * GB, reserve * GB)
    opened = books(*seen, policy=policy)
    room = opened.room() or 0
    after, places = fill(opened, count)
    assert len(places) == min(room, count)
    for account in after.accounts:
        promised = places.count(account.uuid) * policy.need_bytes
        assert not promised or promised + policy.reserve_bytes <= account.free_bytes


@given(st.integers(1, 8), st.integers(1, 12))
def test_two_instances_are_never_told_to_load_on_one_card_at_once(cards: int, count: int) -> None:
    opened = books(*(card(index, 80) for index in range(cards)), policy=need(6))
    placed = []
    for number in range(1, count + 1):
        place = opened.place(name(number))
        placed += place.gpus
        opened = opened.promise(name(number), place.gpus) if place.gpus else opened
    assert len(placed) == len(set(placed)) == min(cards, count)
