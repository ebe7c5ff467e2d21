"""The runtime's list: renewed, kept when it cannot be had, and corrected by deaths that the kernel tells of.

The runtime is a double (it is the outermost edge here); the processes that die are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import structlog.testing

from hasupervisor.model import Address, Fact, Phase, RuntimeView
from hasupervisor.observe import instances
from hasupervisor.observe.deaths import Deaths
from hasupervisor.observe.instances import InstanceSense
from hasupervisor.runtimes.base import Launch, RuntimeTrouble
from tests.real.waiting import eventually

ADDRESS = Address("127.0.0.1", 8000)


@dataclass
class Runtime:
    """Lists what the test says; raises or hangs when told."""

    facts: list[Fact] = field(default_factory=list)
    failure: Exception | None = None
    answers: asyncio.Event = field(default_factory=asyncio.Event)  # cleared: `list` hangs
    lists: int = 0
    silent: Exception | None = None  # what a ping raises
    pong: asyncio.Event = field(default_factory=asyncio.Event)  # cleared: a ping hangs
    pings: int = 0
    names: frozenset[str] = frozenset()
    happened: asyncio.Queue[str | Exception] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.answers.set()
        self.pong.set()

    async def list(self) -> list[Fact]:
        self.lists += 1
        facts = list(self.facts)
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure
        return facts

    async def ping(self) -> None:
        self.pings += 1
        await self.pong.wait()
        if self.silent is not None:
            raise self.silent

    async def strangers(self) -> frozenset[str]:
        return self.names

    async def changes(self) -> AsyncIterator[str]:
        while True:
            name = await self.happened.get()
            if isinstance(name, Exception):
                raise name
            yield name

    async def start(self, launch: Launch) -> str:
        raise AssertionError("a sense starts nothing")

    async def stop(self, name: str, runtime_id: str, grace: float) -> str:
        raise AssertionError("a sense stops nothing")

    async def kill(self, name: str, runtime_id: str) -> str:
        raise AssertionError("a sense kills nothing")

    async def clear(self, name: str, runtime_id: str) -> str:
        raise AssertionError("a sense clears nothing")

    async def logs(self, name: str, lines: int, follow: bool) -> AsyncIterator[str]:
        raise AssertionError("a sense reads no logs")
        yield ""

    async def close(self) -> None:
        raise AssertionError("the runtime is not the sense's to close")


@dataclass
class Sensing:
    sense: InstanceSense
    runtime: Runtime
    changes: list[float]

    def phase(self, name: str = "chatglm-01") -> Phase | None:
        return next((fact.phase for fact in self.sense.view().facts if fact.name == name), None)


@contextlib.asynccontextmanager
async def sensing(*facts: Fact, **said: object) -> AsyncIterator[Sensing]:
    runtime = Runtime(list(facts), **said)  # type: ignore[arg-type]
    changes: list[float] = []
    sense = InstanceSense(runtime, lambda: changes.append(time.monotonic()))
    sense.start()
    try:
        yield Sensing(sense, runtime, changes)
    finally:
        await sense.close()


@contextlib.contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command or ("sleep", "1000")) as sleeper:
        try:
            yield sleeper
        finally:
            sleeper.kill()


def fact(name: str = "chatglm-01", pid: int | None = None, phase: Phase = Phase.RUNNING, **more: object) -> Fact:
    started = {"started_at": time.monotonic()} if pid is not None else {}
    return Fact(name, f"id-of-{name}", phase, ADDRESS, ADDRESS, pid=pid, **(started | more))  # type: ignore[arg-type]


# --- the list ---------------------------------------------------------------------------------------------------------


async def test_before_the_first_list_nothing_is_known_and_the_first_is_told_even_if_empty() -> None:
    async with sensing() as seen:
        assert seen.sense.view() == RuntimeView()
        await eventually(lambda: seen.changes)
        assert seen.sense.view().listed_at is not None
        assert seen.sense.view().facts == ()


async def test_a_change_brings_a_new_list_at_once() -> None:
    async with sensing(fact("chatglm-01")) as seen:
        await eventually(lambda: seen.phase() is Phase.RUNNING)
        seen.runtime.facts = [fact("chatglm-02"), fact("chatglm-01", phase=Phase.EXITED, exit_code=1)]
        seen.runtime.happened.put_nowait("chatglm-01")
        happened_at = time.monotonic()
        await eventually(lambda: seen.phase() is Phase.EXITED)
        assert time.monotonic() - happened_at < 0.5
        assert [known.name for known in seen.sense.view().facts] == ["chatglm-01", "chatglm-02"]


async def test_what_happens_together_is_one_list() -> None:
    async with sensing() as seen:
        await eventually(lambda: seen.runtime.lists == 1)
        for _ in range(50):
            seen.runtime.happened.put_nowait("")
        await eventually(lambda: seen.runtime.lists == 2)
        for _ in range(20):
            seen.sense.refresh()
            await asyncio.sleep(0)
        await eventually(lambda: seen.runtime.lists == 3)


async def test_a_list_that_was_asked_for_is_told_even_if_nothing_changed() -> None:
    async with sensing(fact()) as seen:
        await eventually(lambda: seen.changes)
        listed_at = seen.sense.view().listed_at
        told = len(seen.changes)
        seen.sense.refresh()
        await eventually(lambda: len(seen.changes) > told)
        assert seen.sense.view().listed_at != listed_at


async def test_a_list_is_as_old_as_its_question() -> None:
    async with sensing() as seen:
        await eventually(lambda: seen.changes)
        seen.runtime.answers.clear()
        seen.sense.refresh()
        await eventually(lambda: seen.runtime.lists == 2)
        asked_by = time.monotonic()
        seen.runtime.facts = [fact()]
        seen.runtime.answers.set()
        await eventually(lambda: len(seen.changes) == 2)
        listed_at = seen.sense.view().listed_at
        assert listed_at is not None
        assert listed_at <= asked_by


async def test_strangers_are_told() -> None:
    async with sensing(names=frozenset({"chatglm-07"})) as seen:
        await eventually(lambda: seen.sense.strangers() == {"chatglm-07"})


# --- a list that cannot be had ----------------------------------------------------------------------------------------


async def test_trouble_is_told_with_its_count_and_the_old_list_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "AGAIN", 0.05)
    async with sensing(fact()) as seen:
        await eventually(lambda: seen.phase() is Phase.RUNNING)
        good = seen.sense.view()
        seen.runtime.failure = RuntimeTrouble("cannot reach dockerd: no answer in 5 s")
        seen.sense.refresh()
        await eventually(lambda: seen.sense.view().trouble)
        first = seen.sense.view()
        assert first.trouble == "cannot reach dockerd: no answer in 5 s"
        await eventually(lambda: seen.sense.view().trouble == "cannot reach dockerd: no answer in 5 s (3rd time)")
        third = seen.sense.view()
        assert (third.facts, third.listed_at, third.trouble_since) == (good.facts, good.listed_at, first.trouble_since)
        seen.runtime.failure = None
        await eventually(lambda: seen.sense.view().trouble is None)
        assert seen.sense.view().trouble_since is None


async def test_a_runtime_that_falls_silent_between_two_lists_is_told_by_a_ping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(instances, "PING_EVERY", 0.02)
    monkeypatch.setattr(instances, "AGAIN", 0.05)
    async with sensing(fact()) as seen:
        await eventually(lambda: seen.runtime.pings > 3)
        assert (seen.runtime.lists, len(seen.changes)) == (1, 1)  # a ping that is answered costs no list and no cycle
        good = seen.sense.view()
        seen.runtime.failure = seen.runtime.silent = RuntimeTrouble("cannot reach dockerd: no answer in 5 s")
        await eventually(lambda: seen.sense.view().trouble)
        assert len(seen.changes) == 2
        view, pings = seen.sense.view(), seen.runtime.pings
        assert (view.trouble, view.facts) == ("cannot reach dockerd: no answer in 5 s", good.facts)
        await eventually(lambda: seen.runtime.lists >= 4)
        assert seen.runtime.pings == pings  # while it is away, the list alone is asked
        seen.runtime.failure = seen.runtime.silent = None
        await eventually(lambda: seen.sense.view().trouble is None)
        await eventually(lambda: seen.runtime.pings > pings)


async def test_a_ping_that_hangs_holds_up_no_list_and_one_that_was_overtaken_by_a_list_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(instances, "PING_EVERY", 0.02)
    async with sensing(fact()) as seen:
        seen.runtime.pong.clear()
        await eventually(lambda: seen.runtime.pings == 1 and seen.changes)
        asked_by = time.monotonic()
        seen.sense.refresh()
        await eventually(lambda: (seen.sense.view().listed_at or 0.0) > asked_by)
        monkeypatch.setattr(instances, "PING_EVERY", 100.0)  # the one that hangs is the last
        seen.runtime.silent = RuntimeTrouble("cannot reach dockerd: no answer in 5 s")
        told = len(seen.changes)
        seen.runtime.pong.set()
        seen.sense.refresh()
        await eventually(lambda: len(seen.changes) > told)
        assert seen.sense.view().trouble is None


async def test_trouble_before_any_list_is_unknown_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sensing(failure=RuntimeTrouble("cannot reach dockerd: no such file")) as seen:
        await eventually(lambda: seen.sense.view().trouble)
        assert seen.sense.view().listed_at is None
        assert seen.changes


async def test_a_runtime_that_breaks_its_promise_of_a_deadline_does_not_hang_the_sense(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(instances, "PATIENCE", 0.1)
    async with sensing() as seen:
        seen.runtime.answers.clear()
        seen.sense.refresh()
        await eventually(lambda: seen.sense.view().trouble == "the runtime gave no answer in 0.1 s")
        seen.runtime.answers.set()
        await eventually(lambda: seen.sense.view().trouble is None)


async def test_a_defect_of_the_runtime_is_logged_as_such_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "AGAIN", 0.05)
    async with sensing(fact()) as seen:
        await eventually(lambda: seen.phase() is Phase.RUNNING)
        with structlog.testing.capture_logs() as logs:
            seen.runtime.failure = KeyError("Id")
            seen.runtime.happened.put_nowait(ValueError("odd"))
            await eventually(lambda: seen.sense.view().trouble)
        assert {line["event"][:4] for line in logs} == {"BUG:"}
        assert seen.sense.view().trouble is not None
        assert "KeyError" in seen.sense.view().trouble
        assert seen.phase() is Phase.RUNNING
        seen.runtime.failure = None
        await eventually(lambda: seen.sense.view().trouble is None)
        lists = seen.runtime.lists
        seen.runtime.happened.put_nowait("chatglm-01")  # it listens again
        await eventually(lambda: seen.runtime.lists > lists)


@pytest.mark.parametrize(
    ("n", "word"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (21, "21st"), (113, "113th")],
)
def test_times_are_counted_in_words(n: int, word: str) -> None:
    assert instances._ordinal(n) == word


# --- deaths -----------------------------------------------------------------------------------------------------------


async def test_a_death_is_seen_at_once_though_the_runtime_hangs() -> None:
    with process() as sleeper:
        async with sensing(fact(pid=sleeper.pid)) as seen:
            await eventually(lambda: seen.phase() is Phase.RUNNING)
            seen.runtime.answers.clear()
            told = len(seen.changes)
            killed_at = time.monotonic()
            os.kill(sleeper.pid, signal.SIGKILL)
            await eventually(lambda: seen.phase() is Phase.EXITED, every=0.001)
            assert time.monotonic() - killed_at < 0.2
            assert len(seen.changes) > told
            assert seen.sense.view().facts[0].exit_code is None
            assert seen.sense.view().trouble is None


async def test_a_runtime_that_still_says_running_does_not_raise_the_dead() -> None:
    with process() as sleeper:
        async with sensing(fact(pid=sleeper.pid)) as seen:
            await eventually(lambda: seen.phase() is Phase.RUNNING)
            lists = seen.runtime.lists
            os.kill(sleeper.pid, signal.SIGKILL)
            await eventually(lambda: seen.phase() is Phase.EXITED)
            await eventually(lambda: seen.runtime.lists > lists)  # a death asks for a list by itself
            seen.sense.refresh()
            await eventually(lambda: seen.runtime.lists > lists + 1)
            assert seen.phase() is Phase.EXITED
            seen.runtime.facts = [fact(phase=Phase.EXITED, exit_code=-9)]
            seen.sense.refresh()
            await eventually(lambda: seen.sense.view().facts[0].exit_code == -9)


async def test_a_container_that_was_started_again_lives_with_its_new_pid() -> None:
    with process() as first, process() as second:
        async with sensing(fact(pid=first.pid)) as seen:
            await eventually(lambda: seen.phase() is Phase.RUNNING)
            first.kill()
            await eventually(lambda: seen.phase() is Phase.EXITED)
            seen.runtime.facts = [fact(pid=second.pid)]
            seen.sense.refresh()
            await eventually(lambda: seen.phase() is Phase.RUNNING)
            second.kill()
            await eventually(lambda: seen.phase() is Phase.EXITED)


async def test_a_frozen_process_that_is_killed_is_dead_too() -> None:
    with process() as sleeper:
        async with sensing(fact(pid=sleeper.pid, phase=Phase.PAUSED)) as seen:
            await eventually(lambda: seen.phase() is Phase.PAUSED)
            sleeper.kill()
            await eventually(lambda: seen.phase() is Phase.EXITED)


async def test_a_pid_that_is_somebody_elses_is_not_watched() -> None:
    with process() as sleeper:
        deaths = Deaths(lambda: None)
        strange = replace(fact(pid=sleeper.pid), started_at=time.monotonic() - 3600.0)
        gone = fact("chatglm-02", pid=2**22 + 1)
        own = fact("chatglm-03", pid=sleeper.pid)
        deaths.follow([strange, gone, fact("chatglm-04"), fact("chatglm-05", pid=sleeper.pid, phase=Phase.EXITED)])
        assert not deaths._watched
        deaths.follow([strange, gone, own])
        assert len(deaths._watched) == 1
        sleeper.kill()
        await eventually(lambda: deaths.ended_at(own))
        assert deaths.ended_at(strange) is None
        assert deaths.ended_at(gone) is None
        deaths.close()


async def test_a_process_named_like_a_trap_is_watched(tmp_path: Path) -> None:
    trapped = tmp_path / "x) R 1 (y"
    trapped.symlink_to(shutil.which("sleep") or "/bin/sleep")
    with process(str(trapped), "1000") as sleeper:
        deaths = Deaths(lambda: None)
        trap = fact(pid=sleeper.pid)
        deaths.follow([trap])
        assert len(deaths._watched) == 1
        sleeper.kill()
        await eventually(lambda: deaths.ended_at(trap))
        deaths.close()


def descriptors() -> int:
    return psutil.Process().num_fds()


async def test_descriptors_go_with_what_they_watched() -> None:
    before = descriptors()
    with process() as one, process() as two:
        opened = descriptors()
        deaths = Deaths(lambda: None)
        facts = [fact("chatglm-01", pid=one.pid), fact("chatglm-02", pid=two.pid)]
        for _ in range(3):
            deaths.follow(facts)
        assert descriptors() == opened + 2
        deaths.follow(facts[:1])
        assert descriptors() == opened + 1
        one.kill()
        await eventually(lambda: deaths.ended_at(facts[0]))
        assert descriptors() == opened
        deaths.follow(facts)
        deaths.close()
    assert descriptors() == before


async def test_whoever_is_told_may_break_and_the_list_goes_on() -> None:
    def on_change() -> None:
        raise RuntimeError("whoever is told breaks")

    runtime = Runtime([])
    sense = InstanceSense(runtime, on_change)
    with structlog.testing.capture_logs() as lines:
        sense.start()
        await eventually(lambda: sense.view().listed_at is not None)
        for _ in range(3):
            before = runtime.lists
            sense.refresh()
            await eventually(lambda before=before: runtime.lists > before)  # type: ignore[misc]
        await sense.close()
    assert sense.view().trouble is None
    assert len([line for line in lines if "BUG" in line["event"]]) == 1
