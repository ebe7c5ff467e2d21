"""A dockerd that is missing, forbidden, frozen or restarted: told in words and in time, and instances go on."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hasupervisor.runtimes.base import Launch, RuntimeTrouble
from hasupervisor.runtimes.docker import DockerRuntime
from hasupervisor.runtimes.docker_launch import DockerSettings
from hasupervisor.runtimes.docker_streams import Output
from hasupervisor.runtimes.dockerd import Deadlines, Dockerd
from tests.real.asking import answers, the
from tests.real.dockerd import Engine
from tests.real.waiting import eventually, threads


@pytest.fixture
async def runtime(docker_settings: DockerSettings) -> AsyncIterator[DockerRuntime]:
    runtime = DockerRuntime(docker_settings)
    yield runtime
    await runtime.close()


async def test_a_missing_socket_is_told_with_the_next_command(tmp_path: Path) -> None:
    host = f"unix://{tmp_path}/no.sock"
    runtime = DockerRuntime(DockerSettings(service="chatglm", image="x", host=host))
    with pytest.raises(RuntimeTrouble, match=f"{host}: no such socket: is docker running. systemctl status docker"):
        await runtime.list()


async def test_a_socket_without_a_listener_is_told_with_the_next_command(tmp_path: Path) -> None:
    server = await asyncio.start_unix_server(lambda _, w: w.close(), tmp_path / "dead.sock")
    server.close()
    await server.wait_closed()
    runtime = DockerRuntime(DockerSettings(service="chatglm", image="x", host=f"unix://{tmp_path}/dead.sock"))
    with pytest.raises(RuntimeTrouble, match=r"nobody listens there: is docker running. systemctl status docker"):
        await runtime.list()


async def test_a_socket_of_others_is_told_with_the_next_command(docker_settings: DockerSettings) -> None:
    runtime = DockerRuntime(docker_settings)
    refused = r"permission denied on .*docker.sock for the user .*: usermod -aG docker "
    with as_another_user(), pytest.raises(RuntimeTrouble, match=refused):
        await runtime.list()


@contextmanager
def as_another_user() -> Iterator[None]:
    """This thread, and those that it starts meanwhile, meet files as the user nobody (65534) would."""
    libc = ctypes.CDLL(None)
    libc.setfsuid(65534)
    try:
        yield
    finally:
        libc.setfsuid(0)


async def test_a_dockerd_that_hangs_costs_every_call_its_deadline_and_nobody_else(
    engine: Engine, docker_settings: DockerSettings, port_range: Callable[[int], range]
) -> None:
    runtime = DockerRuntime(docker_settings, Deadlines(engine=1.0, ping=0.5, create=1.0, term=1.0, kill=1.0))
    ports = port_range(2)
    runtime_id = await runtime.start(Launch("chatglm-01", ports[0]))
    fact = await the(runtime, "chatglm-01")
    await eventually(lambda: answers(fact))
    with engine.frozen():
        began, ticks = time.monotonic(), 0
        calls = [
            asyncio.create_task(call)
            for call in (
                runtime.list(),
                runtime.ping(),
                runtime.strangers(),
                runtime.start(Launch("chatglm-02", ports[1])),
                runtime.stop("chatglm-01", runtime_id, 1.0),
                runtime.kill("chatglm-01", runtime_id),
            )
        ]
        while not all(call.done() for call in calls):
            await asyncio.sleep(0.01)
            ticks += 1
        took = time.monotonic() - began
        for call in calls:
            with pytest.raises(RuntimeTrouble, match=r"cannot reach dockerd at unix:.*: no answer in .* s"):
                await call
        assert took < 4.0
        assert ticks > took * 50, "the event loop was held up"
        assert (await answers(fact))["status"] == "healthy"
        for _ in range(30):  # asked on and on, it does not pile threads up
            with pytest.raises(RuntimeTrouble):
                await asyncio.wait_for(runtime.list(), 3.0)
            if time.monotonic() - began > 8.0:
                break
        assert threads("lane") <= 8
    assert "chatglm-01" in [fact.name for fact in await runtime.list()]
    await eventually(lambda: threads("lane") == 0)
    await runtime.close()


async def test_a_dockerd_that_is_slow_but_answers_within_its_deadline_is_not_taken_for_silent(
    docker_settings: DockerSettings, engine: Engine
) -> None:
    patient, hasty = DockerRuntime(docker_settings), DockerRuntime(docker_settings, Deadlines(engine=1.0))
    await patient.ping()
    await hasty.ping()
    with engine.frozen():
        ping = asyncio.create_task(patient.ping())
        with pytest.raises(RuntimeTrouble, match=r"cannot reach dockerd at unix:.*: no answer in 1 s"):
            await hasty.ping()
        assert not ping.done()
    await ping
    await patient.close()
    await hasty.close()


@pytest.mark.parametrize("graceful", [True, False], ids=["stopped", "killed"])
async def test_after_a_restart_of_dockerd_instances_run_on_and_events_come_again(
    engine: Engine, runtime: DockerRuntime, port: int, graceful: bool
) -> None:
    await runtime.start(Launch("chatglm-01", port))
    before = await the(runtime, "chatglm-01")
    await eventually(lambda: answers(before))
    changes = runtime.changes()
    assert await anext(changes) == ""
    restarting = asyncio.create_task(asyncio.to_thread(engine.restart, graceful))
    while not restarting.done():
        assert (await answers(before))["status"] == "healthy"
    await restarting
    async with asyncio.timeout(15):
        assert await anext(changes) == ""
    after = await eventually(lambda: the(runtime, "chatglm-01"))
    assert (after.runtime_id, after.pid, after.address) == (before.runtime_id, before.pid, before.address)
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        while await anext(changes) != "chatglm-01":
            pass
    await changes.aclose()  # type: ignore[attr-defined]


async def test_a_reader_of_output_that_leaves_before_dockerd_has_answered_leaves_no_thread(
    engine: Engine, docker_settings: DockerSettings, port: int
) -> None:
    runtime = DockerRuntime(docker_settings)
    runtime_id = await runtime.start(Launch("chatglm-01", port))
    dockerd = Dockerd(docker_settings.host, Deadlines(output=0.5))
    await dockerd.ping()
    with engine.frozen():
        output = Output(dockerd, runtime_id, 10, follow=True)
        reading = asyncio.ensure_future(anext(output.items()))
        await eventually(lambda: threads("docker logs"))
        reading.cancel()
        await eventually(lambda: not threads("docker logs"))
        late = Output(dockerd, runtime_id, 10, follow=True)
        with pytest.raises(RuntimeTrouble, match=r"no answer in 0\.5 s"):
            await anext(late.items())
    await runtime.close()


async def test_output_that_is_silent_for_longer_than_the_deadline_is_followed_on(
    docker_settings: DockerSettings, port: int
) -> None:
    runtime = DockerRuntime(docker_settings, Deadlines(output=0.5))
    await runtime.start(Launch("chatglm-01", port))
    fact = await the(runtime, "chatglm-01")
    await eventually(lambda: answers(fact))
    lines = runtime.logs("chatglm-01", 10, follow=True)
    assert "listening" in await anext(lines)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(following := asyncio.ensure_future(anext(lines))), 1.5)
    assert fact.pid is not None
    os.kill(fact.pid, signal.SIGTERM)
    assert "stopping" in await following
    await runtime.close()
