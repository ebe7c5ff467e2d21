"""The guardian on real processes: it stops all of an instance, and lets it go on whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from hasupervisor.drill import guardian, processes
from hasupervisor.drill.guardian import Guardian, GuardianLost
from hasupervisor.runtimes.process_records import Identity

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0

FAMILY = """
import os, sys, time
children = []
for number in range(2):
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
    children.append(pid)
print(*children, flush=True)
time.sleep(600)
"""

# A drill that orders the instance of its arguments to be held and then hangs, until it is killed.
HOLDER = """
import asyncio, sys, time
from hasupervisor.drill import guardian, processes
keeper = guardian.start()
print(keeper.process.pid, flush=True)
asyncio.run(keeper.hold(processes.identify(int(sys.argv[1])), float(sys.argv[2])))
print("holds", flush=True)
time.sleep(600)
"""


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.01)


def is_stopped(pid: int) -> bool:
    return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)


@pytest.fixture
def family() -> Iterator[list[int]]:
    """A process and two that it has forked: their pids, the parent's first."""
    parent = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout is not None
    pids = [parent.pid, *map(int, parent.stdout.readline().split())]
    try:
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        parent.wait(DEADLINE_S)
        parent.stdout.close()


@pytest.fixture
def keeper() -> Iterator[Guardian]:
    started = guardian.start()
    try:
        yield started
    finally:
        started.close()


def test_a_tree_is_the_process_and_all_that_it_has_forked(family: list[int]) -> None:
    found = processes.tree(processes.identify(family[0]))
    assert found[0].pid == family[0]
    assert {process.pid for process in found} == set(family)


def test_a_pid_that_was_given_to_another_is_nobody(family: list[int]) -> None:
    real = processes.identify(family[0])
    other = Identity(real.pid, (real.start or 0) - 1, real.boot)
    assert processes.tree(other) == []
    assert processes.stop(other) == set()
    assert not is_stopped(family[0])


async def test_it_holds_all_of_an_instance_and_releases_it(keeper: Guardian, family: list[int]) -> None:
    await keeper.hold(processes.identify(family[0]), 60.0)
    until(lambda: all(map(is_stopped, family)), "all are stopped")
    await keeper.release()
    until(lambda: not any(map(is_stopped, family)), "all go on")


async def test_a_slow_instance_runs_and_stands_still_in_turns(keeper: Guardian, family: list[int]) -> None:
    await keeper.slow(processes.identify(family[0]), 60.0)
    for _ in range(3):
        until(lambda: all(map(is_stopped, family)), "stands still")
        until(lambda: not any(map(is_stopped, family)), "runs")
    await keeper.release()
    until(lambda: not any(map(is_stopped, family)), "goes on")


async def test_the_time_named_with_the_order_ends_it_too(keeper: Guardian, family: list[int]) -> None:
    await keeper.hold(processes.identify(family[0]), 0.3)
    until(lambda: not any(map(is_stopped, family)), "all go on by themselves")


async def test_an_instance_that_ends_while_it_is_held_is_no_trouble(keeper: Guardian, family: list[int]) -> None:
    await keeper.hold(processes.identify(family[0]), 60.0)
    os.kill(family[0], signal.SIGKILL)
    await keeper.release()
    until(lambda: not any(map(is_stopped, family[1:])), "what it had forked goes on")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_what_ends_a_drill_does_not_end_its_guardian(
    keeper: Guardian, family: list[int], number: signal.Signals
) -> None:
    os.kill(keeper.process.pid, number)
    await keeper.hold(processes.identify(family[0]), 60.0)
    until(lambda: all(map(is_stopped, family)), "it still obeys")


async def test_the_drill_lets_go_when_its_guardian_is_killed(keeper: Guardian, family: list[int]) -> None:
    await keeper.hold(processes.identify(family[0]), 60.0)
    until(lambda: all(map(is_stopped, family)), "all are stopped")
    os.kill(keeper.process.pid, signal.SIGKILL)
    await keeper.ended()
    until(lambda: not any(map(is_stopped, family)), "all go on")


async def test_an_order_to_a_guardian_that_is_gone_says_so_and_holds_nobody(
    keeper: Guardian, family: list[int]
) -> None:
    os.kill(keeper.process.pid, signal.SIGKILL)
    with pytest.raises(GuardianLost, match=rf"guardian \(pid {keeper.process.pid}\)"):
        await keeper.hold(processes.identify(family[0]), 60.0)
    assert not any(map(is_stopped, family))


def test_the_end_of_the_drill_is_the_end_of_the_fault(family: list[int]) -> None:
    drill = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(family[0]), "60"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert drill.stdout is not None
    guarding = psutil.Process(int(drill.stdout.readline()))
    assert drill.stdout.readline() == "holds\n"
    until(lambda: all(map(is_stopped, family)), "all are stopped")
    drill.kill()
    drill.wait(DEADLINE_S)
    drill.stdout.close()
    until(lambda: not any(map(is_stopped, family)), "all go on")
    psutil.wait_procs([guarding], DEADLINE_S)
    assert not guarding.is_running() or guarding.status() == psutil.STATUS_ZOMBIE


def test_an_identity_survives_json(family: list[int]) -> None:
    one = processes.identify(family[0])
    assert Identity(**json.loads(json.dumps(asdict(one)))) == one
