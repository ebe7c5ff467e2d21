"""The waiting room, without nginx: who waits, who goes where, who is told that it was in vain."""

from __future__ import annotations

import asyncio

import pytest

from hasupervisor.act.nginx.waiting import FRESH_FOR, PACE, Asked, Told, Verdict, WaitingRoom, fallen
from hasupervisor.model import Address

OWN = "unix:/var/lib/chatglm-ha/nginx/room.sock"
ONE, TWO = Address("127.0.0.1", 8000), Address("127.0.0.1", 8001)


class Clock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Calls:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def room(clock: Clock, *, hold: float = 10.0, hold_max: int = 100, tries: int = 3) -> tuple[WaitingRoom, Calls]:
    calls = Calls()
    return WaitingRoom(hold=hold, hold_max=hold_max, tries=tries, own=OWN, on_wait=calls, clock=clock), calls


NEW = Asked()  # nobody has tried it yet


async def waiting(room: WaitingRoom, count: int, asked: Asked = NEW) -> list[asyncio.Task[Told]]:
    tasks = [asyncio.create_task(room.ask(asked)) for _ in range(count)]
    await asyncio.sleep(0)  # each of them runs up to where it waits
    assert room.waiting == count
    return tasks


async def test_a_request_goes_to_whoever_was_asked_after_it_came() -> None:
    clock = Clock()
    held, calls = room(clock)
    (task,) = await waiting(held, 1)
    assert calls.count == 1, "a newer proof was not asked for"
    clock.now = 101.0
    held.prove({ONE: 99.0})
    assert held.waiting == 1, "a proof from before it came says nothing about now"
    held.prove({ONE: 99.0, TWO: 100.5})
    assert await task == Told(Verdict.GO, 1.0, TWO)
    assert held.counts.released == 1


async def test_a_proof_that_has_grown_old_releases_nobody() -> None:
    clock = Clock()
    held, _ = room(clock)
    await waiting(held, 1)
    clock.now = 100.5 + FRESH_FOR + 0.1
    held.prove({ONE: 100.5})
    assert held.waiting == 1
    held.close()


async def test_those_who_waited_go_one_after_another_and_in_turn_to_all_who_serve() -> None:
    clock = Clock()
    held, _ = room(clock)
    tasks = await waiting(held, 6)
    clock.now = 101.0
    held.prove({ONE: 100.5, TWO: 100.5})
    for _ in range(3):
        await asyncio.sleep(0)
    assert sum(task.done() for task in tasks) == 2, "a wave instead of a stream"
    for left in (4, 2):
        assert held.waiting == left
        clock.now += PACE
        held.prove({ONE: 100.5, TWO: 100.5})
    told = await asyncio.gather(*tasks)
    targets = [answer.target for answer in told]
    assert targets.count(ONE) == targets.count(TWO) == 3


async def test_a_request_that_finds_nobody_in_time_is_told_so() -> None:
    clock = Clock()
    held, _ = room(clock, hold=0.05)
    (task,) = await waiting(held, 1)
    assert (await task).verdict is Verdict.NOBODY
    assert (held.waiting, held.counts.expired) == (0, 1)


async def test_the_time_that_a_request_has_waited_before_counts() -> None:
    clock = Clock()
    held, _ = room(clock, hold=10.0)
    assert (await held.ask(Asked(waited=10.0))).verdict is Verdict.NOBODY
    (task,) = await waiting(held, 1, Asked(waited=9.0))
    clock.now = 100.25
    held.prove({ONE: 100.125})
    assert await task == Told(Verdict.GO, 9.25, ONE)


async def test_the_time_that_an_instance_had_it_does_not_count() -> None:
    clock = Clock()
    held, _ = room(clock, hold=10.0)
    (task,) = await waiting(held, 1)
    clock.now = 102.0
    held.prove({ONE: 101.0})
    told = await task
    clock.now = 125.0  # ONE has hung for 23 s, and was killed
    (task,) = await waiting(held, 1, Asked(f"{OWN} : {ONE}", "0.0 : 0.0", "200 : 502", told.waited))
    clock.now = 127.0
    held.prove({TWO: 126.0})
    assert await task == Told(Verdict.GO, 4.0, TWO)


async def test_who_has_waited_longest_goes_first_though_it_has_been_away() -> None:
    clock = Clock()
    held, _ = room(clock)
    (new,) = await waiting(held, 1)
    back = asyncio.create_task(held.ask(Asked(waited=4.0)))
    await asyncio.sleep(0)
    clock.now = 101.0
    held.prove({ONE: 100.5})
    assert await back == Told(Verdict.GO, 5.0, ONE)
    assert not new.done()
    held.close()


async def test_more_than_hold_max_are_refused_at_once() -> None:
    held, _ = room(Clock(), hold_max=2)
    await waiting(held, 2)
    assert (await held.ask(Asked())).verdict is Verdict.FULL
    held.close()


async def test_a_client_that_goes_leaves_its_place() -> None:
    held, _ = room(Clock())
    (task,) = await waiting(held, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (held.waiting, held.counts.left) == (0, 1)


async def test_a_query_of_death_is_refused_when_as_many_have_fallen_as_are_allowed() -> None:
    held, _ = room(Clock(), tries=2)
    deadly = Asked("127.0.0.1:8000, 127.0.0.1:8001", "0.001, 0.001", "502, 502")
    assert (await held.ask(deadly)).verdict is Verdict.DEADLY
    assert held.counts.refused_deadly == 1


async def test_a_request_that_was_in_several_when_they_turned_bad_together_is_not_blamed_once_for_each() -> None:
    held, _ = room(Clock(), tries=2)
    held.prove({}, frozenset({ONE, TWO}))
    await waiting(held, 1, Asked("127.0.0.1:8000, 127.0.0.1:8001", "0.001, 0.001", "502, 502"))
    again = Asked(
        "127.0.0.1:8000, 127.0.0.1:8001 : 127.0.0.1:8000 : 127.0.0.1:8001",
        "0.001, 0.001 : 0.001 : 0.001",
        "502, 502 : 502 : 502",
    )
    assert (await held.ask(again)).verdict is Verdict.DEADLY, "they were well again, and fell over it"


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        (Asked(), 0),
        (Asked("ha", "-", "502"), 0),  # nobody to try
        (Asked("127.0.0.1:8000", "-", "502"), 0),  # refused: it never saw it
        (Asked("127.0.0.1:8000", "0.000", "502"), 1),  # sent, and then it died
        (Asked("127.0.0.1:8000, 127.0.0.1:8001", "0.001, -", "502, 502"), 1),
        (Asked("127.0.0.1:8000, 127.0.0.1:8001", "0.001, 0.002", "502, 503"), 1),  # the second is full
        (Asked(f"127.0.0.1:8000 : {OWN} : 127.0.0.1:8001", "0.001 : 0.000 : 0.001", "502 : 200 : 502"), 2),
        (Asked("127.0.0.1:8000", "0.001", "500"), 1),
        (Asked("127.0.0.1:8000", "0.001", "504"), 1),
        (Asked("[::1]:8000", "0.001", "502"), 1),
    ],
)
def test_fallen_is_who_took_the_request_and_gave_no_answer(asked: Asked, count: int) -> None:
    assert fallen(asked, OWN) == count
