"""One container about which dockerd gives no answer: it is told so, in time, and nobody else is held up."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable

import pytest

from hasupervisor.model import Phase
from hasupervisor.runtimes.base import Launch, RuntimeTrouble, Stuck
from hasupervisor.runtimes.docker import DockerRuntime
from hasupervisor.runtimes.docker_launch import DockerSettings
from hasupervisor.runtimes.dockerd import Deadlines
from tests.real.asking import answers, the
from tests.real.dockerd import Engine
from tests.real.waiting import eventually

SHORT = Deadlines(inspect=1.0, start=1.5, term=0.5, kill=1.0, output=0.5, remove=1.0)


@pytest.fixture
async def runtime(docker_settings: DockerSettings) -> AsyncIterator[DockerRuntime]:
    runtime = DockerRuntime(docker_settings, SHORT)
    yield runtime
    await runtime.close()


async def test_a_container_that_cannot_be_killed_is_stuck_by_its_deadline_and_blocks_no_other(
    engine: Engine, runtime: DockerRuntime, docker_settings: DockerSettings, port_range: Callable[[int], range]
) -> None:
    ports = port_range(3)
    stuck = await runtime.start(Launch("chatglm-01", ports[0], ("GPU-aaaa",)))
    other = await runtime.start(Launch("chatglm-02", ports[1]))
    second = await the(runtime, "chatglm-02")
    await eventually(lambda: answers(second))
    shim = engine.shim_pid(stuck)
    os.kill(shim, signal.SIGSTOP)
    try:
        began = time.monotonic()
        ending = asyncio.create_task(runtime.stop("chatglm-01", stuck, 0.5))
        # Meanwhile another one is stopped and a new one started.
        await runtime.stop("chatglm-02", other, 5.0)
        await runtime.start(Launch("chatglm-03", ports[2]))
        with pytest.raises(Stuck, match=r"dockerd gives no answer about it in 1 s, while it answers about others"):
            await ending
        assert time.monotonic() - began < 5.0

        # An adapter that has never inspected it lists it all the same, with what its labels say, and stays quick.
        newcomer = DockerRuntime(docker_settings, SHORT)
        facts = {fact.name: fact for fact in await newcomer.list()}
        assert (facts["chatglm-01"].phase, facts["chatglm-01"].gpus) == (Phase.RUNNING, ("GPU-aaaa",))
        assert facts["chatglm-01"].endpoint.port == ports[0]
        assert facts["chatglm-03"].pid is not None
        began = time.monotonic()
        assert {fact.name for fact in await newcomer.list()} == {"chatglm-01", "chatglm-03"}
        assert time.monotonic() - began < 0.5
        with pytest.raises(RuntimeTrouble, match="the output of chatglm-01 cannot be read"):
            await anext(newcomer.logs("chatglm-01", 10, follow=True))
        await newcomer.close()
    finally:
        os.kill(shim, signal.SIGCONT)
    # dockerd's own kill goes through now, and its end is seen.
    await eventually(lambda: is_not_running(runtime, "chatglm-01"))
    await runtime.clear("chatglm-01", stuck)
    assert {fact.name for fact in await runtime.list()} == {"chatglm-03"}


async def is_not_running(runtime: DockerRuntime, name: str) -> bool:
    return all(fact.phase is not Phase.RUNNING for fact in await runtime.list() if fact.name == name)


async def test_a_start_whose_hook_hangs_is_stuck_by_its_deadline_and_is_listed_as_created(
    engine: Engine, runtime: DockerRuntime, port_range: Callable[[int], range]
) -> None:
    ports = port_range(2)
    with engine.hook("hang"):
        starting = asyncio.create_task(runtime.start(Launch("chatglm-01", ports[0], ("GPU-aaaa",))))
        await runtime.start(Launch("chatglm-02", ports[1]))
        with pytest.raises(Stuck, match=r"has not started it in 1.5 s: a runtime hook or the GPU's driver hangs"):
            await starting
        facts = {fact.name: fact for fact in await runtime.list()}
        assert (facts["chatglm-01"].phase, facts["chatglm-01"].gpus) == (Phase.CREATED, ("GPU-aaaa",))
        assert facts["chatglm-02"].phase is Phase.RUNNING
        with pytest.raises(Stuck):
            await runtime.clear("chatglm-01", facts["chatglm-01"].runtime_id)
    await eventually(lambda: is_running(runtime, "chatglm-01"))  # dockerd goes on where it stood


async def is_running(runtime: DockerRuntime, name: str) -> bool:
    return any(fact.phase is Phase.RUNNING for fact in await runtime.list() if fact.name == name)
