"""Quarantines and losses of GPUs outlive the daemon; what is seen anew, and cards with nothing to say, are not kept."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from hasupervisor.memory import Memory
from hasupervisor.memory.cards import card_of, card_row
from hasupervisor.memory.database import Batch
from hasupervisor.memory.rows import Moment
from hasupervisor.model.gpu import CardRecord, Counted, Need, Quarantine
from tests.memory.scribing import NOW, WALL, scribe_at

BROKEN = Quarantine("fell off the bus (Xid 79)", Need.REBOOT, WALL - 60.25, "boot-1", index=3)
BY_HAND = Quarantine("laut, 风扇", Need.WORD, WALL - 10.0, "boot-1", "alice (uid 1000)", evicts=False)
FIRST = CardRecord("GPU-1", quarantine=BROKEN, lost_in=("boot-0", "boot-1"))
SECOND = CardRecord("GPU-2", by_hand=BY_HAND)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.mark.parametrize(
    "record", [FIRST, SECOND, CardRecord("GPU-3", BROKEN, BY_HAND), CardRecord("GPU-4", lost_in=("boot-1",))]
)
def test_a_record_of_a_card_comes_back_as_it_was(record: CardRecord) -> None:
    assert card_of(card_row(record)) == record


async def test_what_was_said_of_cards_is_known_to_the_next_daemon(path: Path) -> None:
    async with scribe_at(path) as (scribe, remembered):
        assert remembered.cards == ()
        scribe.save_cards([SECOND, FIRST])
        assert await scribe.flush(5) is None
    async with scribe_at(path) as (_, remembered):
        assert remembered.cards == (FIRST, SECOND)


async def test_what_is_in_monotonic_time_is_not_kept(path: Path) -> None:
    busy = replace(FIRST, counted=(Counted("xid 13", 1.0, 2.0),), throttled=((3, True),), leaking_since=4.0)
    async with scribe_at(path) as (scribe, _):
        scribe.save_cards([busy])
    async with scribe_at(path) as (_, remembered):
        assert remembered.cards == (FIRST,)


async def test_a_card_with_nothing_left_to_remember_is_forgotten_and_one_not_named_stays(path: Path) -> None:
    async with scribe_at(path) as (scribe, _):
        scribe.save_cards([FIRST, SECOND])
    async with scribe_at(path) as (scribe, _):
        scribe.save_cards([CardRecord("GPU-1", counted=(Counted("xid 13", 1.0, 2.0),)), CardRecord("GPU-9")])
        assert await scribe.flush(5) is None
    async with scribe_at(path) as (_, remembered):
        assert remembered.cards == (SECOND,)


async def test_cards_that_have_not_changed_are_not_written_again(path: Path) -> None:
    written: list[Batch] = []

    class Counting(Memory):
        def write(self, batch: Batch) -> tuple[str, ...]:
            written.append(batch)
            return super().write(batch)

    async with scribe_at(path, Counting.open) as (scribe, _):
        scribe.save_cards([FIRST, CardRecord("GPU-9")])
        assert await scribe.flush(5) is None
        for second in range(20):
            scribe.save_cards([replace(FIRST, leaking_since=float(second)), CardRecord("GPU-9")])
        assert await scribe.flush(5) is None
    assert [batch.cards for batch in written] == [(FIRST,)]


@pytest.mark.parametrize("spoiled", ["{}", "[]", "{", '{"reason": "x", "need": "luck"}'])
def test_a_card_that_somebody_has_spoiled_is_said_and_the_others_count(path: Path, spoiled: str) -> None:
    memory = Memory.open(path)
    memory.write(Batch(Moment(NOW, WALL), cards=(FIRST, SECOND)))
    memory.close()
    with sqlite3.connect(path) as other:
        other.execute("UPDATE cards SET quarantine = ? WHERE uuid = 'GPU-1'", (spoiled,))
    other.close()
    memory = Memory.open(path)
    remembered = memory.load(Moment(NOW, WALL))
    memory.close()
    assert remembered.cards == (SECOND,)
    assert [m.partition(":")[0] for m in remembered.mishaps] == [
        "the record of GPU GPU-1 cannot be read and is forgotten"
    ]
