"""The daemon's own condition: lateness is measured, use is a share of the time between two samples."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from hasupervisor.observe.host import HostSense, LagMeter


async def test_a_blocked_loop_is_late_by_the_length_of_the_block() -> None:
    meter = LagMeter(0.02)
    meter.start()
    await asyncio.sleep(0.05)
    time.sleep(0.3)  # noqa: ASYNC251, the block is what is tested
    await asyncio.sleep(0.05)
    assert 0.25 < meter.take() < 1.0
    meter.stop()


async def test_a_block_that_goes_on_until_the_question_counts() -> None:
    meter = LagMeter(0.02)
    meter.start()
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251, the block is what is tested
    assert meter.take() > 0.25
    meter.stop()
    assert meter.take() == 0.0


async def test_lateness_is_told_once() -> None:
    meter = LagMeter(0.02)
    meter.start()
    time.sleep(0.3)  # noqa: ASYNC251, the block is what is tested
    await asyncio.sleep(0.05)
    assert meter.take() > 0.25
    assert meter.take() < 0.25
    meter.stop()


async def test_a_sample_tells_cpu_memory_and_files_of_this_process() -> None:
    now = 100.0
    sense = HostSense(lambda: now)
    sense.start()
    first = sense.sample()
    assert (first.at, first.cpu_share) == (100.0, None)
    spent = time.process_time()
    while time.process_time() - spent < 0.2:  # CPU time is what is measured
        pass
    now = 101.0
    one_more = os.dup(0)
    second = sense.sample()
    os.close(one_more)
    assert second.cpu_share is not None
    assert 0.15 < second.cpu_share < 0.6
    assert second.rss_bytes > 10_000_000
    assert second.open_files == first.open_files + 1
    sense.close()


@pytest.mark.parametrize("seconds", [0.0, 5.0])
async def test_an_idle_process_uses_nothing(seconds: float) -> None:
    now = 100.0
    sense = HostSense(lambda: now)
    sense.sample()
    now += seconds
    share = sense.sample().cpu_share
    assert share is None if seconds == 0.0 else share is not None and share < 0.05
