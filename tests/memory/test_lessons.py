"""What the autoscaler has learned outlives the daemon, as old as it is by then."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hasupervisor.decide.autoscale.facts import Lesson
from hasupervisor.memory import Memory, Scribe
from hasupervisor.memory.database import Batch
from hasupervisor.memory.rows import Moment

SAVED = Moment(now=5_000.0, wall=1_800_000_000.0)
TWO = Lesson(serving=2, qps=14.5, at=4_000.0, holds=7_200.0)
THREE = Lesson(serving=3, qps=30.0, at=4_900.0)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory.open(tmp_path / "state.db")


def test_lessons_come_back_the_oldest_first_and_as_old_as_the_wall_clock_says(memory: Memory) -> None:
    memory.write(Batch(SAVED, lessons=(THREE, TWO)))
    found = memory.load(Moment(now=12.0, wall=SAVED.wall + 600)).lessons
    assert [(one.serving, one.qps, one.holds) for one in found] == [(2, 14.5, 7_200.0), (3, 30.0, 3_600.0)]
    assert [one.at for one in found] == pytest.approx([12.0 - 600 - 1_000, 12.0 - 600 - 100])


def test_a_wall_clock_that_was_set_back_makes_no_lesson_come_from_the_future(memory: Memory) -> None:
    memory.write(Batch(SAVED, lessons=(TWO,)))
    (found,) = memory.load(Moment(now=12.0, wall=SAVED.wall - 86_400)).lessons
    assert found.at == pytest.approx(12.0 - 1_000)


def test_all_lessons_are_written_together_and_a_batch_without_them_leaves_them(memory: Memory) -> None:
    memory.write(Batch(SAVED, lessons=(TWO, THREE)))
    memory.write(Batch(SAVED))
    assert memory.load(SAVED).lessons == (TWO, THREE)
    memory.write(Batch(SAVED, lessons=(THREE,)))
    assert memory.load(SAVED).lessons == (THREE,)
    memory.write(Batch(SAVED, lessons=()))
    assert memory.load(SAVED).lessons == ()


async def test_the_scribe_writes_lessons_once_and_gives_them_to_the_next_daemon(tmp_path: Path) -> None:
    written: list[Batch] = []

    class Counting(Memory):
        def write(self, batch: Batch) -> tuple[str, ...]:
            written.append(batch)
            return super().write(batch)

    scribe = Scribe(tmp_path / "state.db", opener=Counting.open)
    assert (await scribe.load(SAVED.now, SAVED.wall)).lessons == ()
    task = asyncio.create_task(scribe.run())
    for _ in range(20):
        scribe.save_lessons((TWO,), SAVED.now, SAVED.wall)
        assert await scribe.flush(5) is None
    task.cancel()
    await asyncio.wait([task])
    await scribe.close()
    assert [batch.lessons for batch in written] == [(TWO,)]
    after = Scribe(tmp_path / "state.db")
    assert (await after.load(SAVED.now, SAVED.wall)).lessons == (TWO,)
    await after.close()
