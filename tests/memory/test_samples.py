"""Samples are kept: each for a day, means of five minutes for ninety; they come back on the clock of a new start."""

from __future__ import annotations

import asyncio
from dataclasses import astuple
from pathlib import Path

import pytest

from hasupervisor.decide.autoscale.facts import Sample
from hasupervisor.memory import Scribe
from hasupervisor.memory.database import Batch, Memory
from hasupervisor.memory.rows import Moment

DAY = 86_400.0
WALL = 1_800_000_000.0  # begins five minutes
MOMENT = Moment(now=50_000.0, wall=WALL)


def sample(ago: float, in_flight: float | None = 4.0, serving: int = 2) -> Sample:
    return Sample(at=MOMENT.now - ago, serving=serving, desired=2, in_flight=in_flight, qps=1.5, cpu_percent=20.0)


def kept(memory: Memory, span: int) -> int:
    found = memory._connection.execute("SELECT count(*) FROM samples WHERE span = ?", (span,)).fetchone()
    return int(found[0])


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory.open(tmp_path / "state.db")


def test_samples_come_back_as_they_were_on_another_clock(memory: Memory) -> None:
    memory.write(Batch(MOMENT, samples=(sample(20, None), sample(10))))
    later = Moment(now=7.0, wall=WALL + 100)
    found = memory.samples(WALL - 60, later)
    assert [(one.at, one.in_flight, one.qps, one.gpu_utilization) for one in found] == [
        (7.0 - 120, None, 1.5, None),
        (7.0 - 110, 4.0, 1.5, None),
    ]


def test_every_figure_of_a_sample_is_kept_those_of_the_host_and_its_gpus_too(memory: Memory) -> None:
    whole = Sample(MOMENT.now - 10, 3, 4, 1, 9.5, 1.5, 3.0, 812.5, 71.0, 2.25, 0.5, 33.0, 44.0, 26.0, 48.0)
    assert None not in astuple(whole)
    memory.write(Batch(MOMENT, samples=(whole,)))
    (found,) = memory.samples(WALL - 60, MOMENT)
    assert astuple(found) == pytest.approx(astuple(whole))


def test_five_minutes_become_a_mean_in_which_unknown_values_do_not_count(memory: Memory) -> None:
    memory.write(Batch(MOMENT, samples=(sample(290, None), sample(200, 2.0), sample(100, 5.0))))
    memory.write(Batch(MOMENT, samples=(sample(10, 8.0),)))
    assert kept(memory, 300) == 1
    (mean,) = memory.samples(WALL - 2 * DAY, MOMENT)
    assert (mean.at, mean.in_flight, mean.serving) == (MOMENT.now, 5.0, 2)


def test_what_is_older_than_a_day_is_kept_as_means_and_after_ninety_not_at_all(memory: Memory) -> None:
    memory.write(Batch(MOMENT, samples=(sample(91 * DAY), sample(2 * DAY), sample(2 * DAY - 10), sample(10))))
    assert kept(memory, 10) == 1
    assert [round((MOMENT.now - one.at) / DAY, 1) for one in memory.samples(WALL - 100 * DAY, MOMENT)] == [2.0, 0.0]


def test_the_means_do_not_fade_when_their_samples_are_forgotten(memory: Memory) -> None:
    memory.write(Batch(MOMENT, samples=(sample(200, 2.0), sample(100, 6.0))))
    later = Moment(MOMENT.now + DAY + 150, WALL + DAY + 150)
    memory.write(Batch(later, samples=(Sample(at=later.now, serving=2, desired=2),)))
    assert [one.in_flight for one in memory.samples(WALL - 2 * DAY, later)] == [4.0]


def test_samples_of_a_clock_that_was_set_back_since_are_left_out(memory: Memory) -> None:
    memory.write(Batch(MOMENT, samples=(sample(10), sample(4000))))
    back = Moment(now=9.0, wall=WALL - 3600)
    assert [one.at for one in memory.samples(WALL - 7200, back)] == [9.0 - 400]


async def test_the_scribe_writes_samples_in_batches_and_reads_those_that_wait(tmp_path: Path) -> None:
    scribe = Scribe(tmp_path / "state.db", clock=lambda: MOMENT.now, wall=lambda: MOMENT.wall)
    await scribe.load(MOMENT.now, MOMENT.wall)
    writing = asyncio.create_task(scribe.run())
    for ago in (50.0, 40.0, 30.0, 20.0, 10.0):
        scribe.save_sample(sample(ago), MOMENT.now, MOMENT.wall)
    assert await scribe.flush(5.0) is None
    assert scribe._file._memory is not None
    assert kept(scribe._file._memory, 10) == 0
    assert len(await scribe.samples(WALL - 100)) == 5
    scribe.save_sample(sample(0.0), MOMENT.now, MOMENT.wall)
    assert await scribe.flush(5.0) is None
    assert kept(scribe._file._memory, 10) == 6
    scribe.save_sample(sample(-10.0), MOMENT.now + 10, MOMENT.wall + 10)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await scribe.close()
    memory = Memory.open(tmp_path / "state.db")
    assert len(memory.samples(WALL - 100, Moment(1.0, WALL + 20))) == 7
