"""The docker runtime on a real dockerd: instances are started, seen, ended, and adopted; trouble is told in words."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from hasupervisor.model import Fact, Phase
from hasupervisor.runtimes.base import Launch, LaunchFailed, PortTaken
from hasupervisor.runtimes.docker import DockerRuntime
from hasupervisor.runtimes.docker_launch import DockerSettings
from tests.real.asking import answers, in_flight, tell, the
from tests.real.dockerd import Engine, cmdline
from tests.real.waiting import eventually, threads


@pytest.fixture
async def runtime(docker_settings: DockerSettings) -> AsyncIterator[DockerRuntime]:
    runtime = DockerRuntime(docker_settings)
    yield runtime
    await runtime.close()


def changed(settings: DockerSettings, **changes: Any) -> DockerRuntime:
    fields = {name: getattr(settings, name) for name in DockerSettings.__slots__}
    return DockerRuntime(DockerSettings(**{**fields, **changes}))


# --- starting and seeing ----------------------------------------------------------------------------------------------


async def test_a_started_instance_is_listed_with_all_that_is_known_and_serves(
    runtime: DockerRuntime, port: int, standin_image: str
) -> None:
    before = time.monotonic()
    runtime_id = await runtime.start(Launch("chatglm-01", port, ("GPU-aaaa", "GPU-bbbb")))
    (fact,) = await runtime.list()
    assert (fact.name, fact.runtime_id, fact.phase) == ("chatglm-01", runtime_id, Phase.RUNNING)
    assert str(fact.endpoint) == f"127.0.0.1:{port}"
    assert (fact.image, fact.gpus) == (standin_image, ("GPU-aaaa", "GPU-bbbb"))
    assert (fact.exit_code, fact.oom_killed) == (None, False)
    assert fact.started_at is not None
    assert before - 0.1 <= fact.started_at <= time.monotonic()
    assert fact.pid is not None
    assert cmdline(fact.pid)[-1] == "/srv/server.py"
    said = await eventually(lambda: answers(fact))
    assert (said["status"], said["name"]) == ("healthy", "chatglm-01")  # its host name is the instance's


async def test_a_container_is_made_as_the_configuration_says(
    engine: Engine, docker_settings: DockerSettings, port: int, tmp_path: Path
) -> None:
    runtime = changed(
        docker_settings, volumes=(f"{tmp_path}:/models:ro",), env={"SERVICE_S": "0.01", "PORT": "1"}, log_max_files=3
    )
    runtime_id = await runtime.start(Launch("chatglm-01", port, ("GPU-aaaa",)))
    with engine.client() as client:
        made = client.api.inspect_container(runtime_id)
    host = made["HostConfig"]
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}
    assert host["Binds"] == [f"{tmp_path}:/models:ro"]
    assert host["ShmSize"] == 16 * 1024 * 1024
    assert host["DeviceRequests"][0]["DeviceIDs"] == ["GPU-aaaa"]
    assert {"SERVICE_S=0.01", "HOST=0.0.0.0", "PORT=8000"} <= set(made["Config"]["Env"])
    assert made["Config"]["Labels"].items() >= {
        ("io.chatglm-ha.service", "chatglm"),
        ("io.chatglm-ha.name", "chatglm-01"),
        ("io.chatglm-ha.port", str(port)),
        ("io.chatglm-ha.instance-port", "8000"),
    }
    await runtime.close()


@pytest.mark.parametrize("changes", [{"reach": "published"}, {"network": "host"}])
async def test_an_instance_that_is_not_reached_directly_answers_on_its_port_of_this_host(
    docker_settings: DockerSettings, port: int, changes: dict[str, str]
) -> None:
    runtime = changed(docker_settings, **changes)
    await runtime.start(Launch("chatglm-01", port))
    fact = await the(runtime, "chatglm-01")
    assert str(fact.address) == str(fact.endpoint) == f"127.0.0.1:{port}"
    assert (await eventually(lambda: answers(fact)))["status"] == "healthy"
    await runtime.close()


async def test_another_adapter_adopts_what_runs_and_sees_the_same(
    runtime: DockerRuntime, docker_settings: DockerSettings, port_range: Callable[[int], range]
) -> None:
    for number, port in enumerate(port_range(2), start=1):
        await runtime.start(Launch(f"chatglm-0{number}", port, (f"GPU-{number}",)))
    adopter = DockerRuntime(docker_settings)
    mine, adopted = await runtime.list(), await adopter.list()
    for one, other in zip(mine, adopted, strict=True):
        assert one.started_at == pytest.approx(other.started_at, abs=0.05)
        assert {**fields(one), "started_at": 0} == {**fields(other), "started_at": 0}
    await adopter.stop("chatglm-01", (await the(adopter, "chatglm-01")).runtime_id, 10.0)
    assert [fact.name for fact in await runtime.list()] == ["chatglm-02"]
    await adopter.close()


def fields(fact: Fact) -> dict[str, Any]:
    return {name: getattr(fact, name) for name in Fact.__slots__}


async def test_names_like_ours_without_our_label_are_strangers_and_not_listed(
    runtime: DockerRuntime, engine: Engine, standin_image: str
) -> None:
    with engine.client() as client:
        for name in ("chatglm-01", "chatglm-backup", "other-chatglm-02"):
            client.api.create_container(standin_image, name=name)
        client.api.create_container(standin_image, name="chatglm-03", labels={"io.chatglm-ha.service": "chatglm"})
    assert await runtime.strangers() == {"chatglm-01", "chatglm-03"}
    assert await runtime.list() == []


async def test_a_container_that_was_created_and_never_started_is_listed_and_can_be_cleared(
    runtime: DockerRuntime, engine: Engine, port: int
) -> None:
    runtime_id = await runtime.start(Launch("chatglm-01", port))
    with engine.client() as client:  # as a start leaves it whose answer never came: made, not begun
        labels = client.api.inspect_container(runtime_id)["Config"]["Labels"]
        image = client.api.inspect_container(runtime_id)["Config"]["Image"]
        client.api.remove_container(runtime_id, force=True)
        made = client.api.create_container(image, name="chatglm-01", labels=labels)["Id"]
    (fact,) = await runtime.list()
    assert (fact.runtime_id, fact.phase, fact.started_at, fact.pid) == (made, Phase.CREATED, None, None)
    assert await runtime.clear("chatglm-01", made) == ""
    assert await runtime.list() == []


# --- ending -----------------------------------------------------------------------------------------------------------


async def test_a_stop_lets_the_work_in_flight_end_and_returns_the_last_output(
    runtime: DockerRuntime, port: int
) -> None:
    runtime_id = await runtime.start(Launch("chatglm-01", port))
    fact = await the(runtime, "chatglm-01")
    await eventually(lambda: answers(fact))
    async with httpx.AsyncClient() as client:
        asked = asyncio.create_task(client.post(f"http://{fact.address}/", json={"prompt": "sleep 0.7"}))
        await eventually(lambda: in_flight(fact))
        output = await runtime.stop("chatglm-01", runtime_id, 20.0)
        assert (await asked).status_code == 200
    assert output.splitlines()[-2:] == ["chatglm-01: stopping, 1 in flight, 0 queued", "chatglm-01: stopped"]
    assert await runtime.list() == []
    assert await runtime.stop("chatglm-01", runtime_id, 20.0) == ""  # gone already is no error


async def test_an_instance_that_does_not_hear_sigterm_is_killed_after_the_grace(
    runtime: DockerRuntime, port: int
) -> None:
    runtime_id = await runtime.start(Launch("chatglm-01", port))
    fact = await the(runtime, "chatglm-01")
    await eventually(lambda: answers(fact))
    await tell(fact, mode="hang")
    began = time.monotonic()
    output = await runtime.stop("chatglm-01", runtime_id, 1.0)
    assert 1.0 <= time.monotonic() - began < 3.0
    assert output == "chatglm-01: listening on 0.0.0.0:8000"
    assert await runtime.list() == []


async def test_a_kill_ends_an_instance_whose_process_is_stopped_at_once(runtime: DockerRuntime, port: int) -> None:
    runtime_id = await runtime.start(Launch("chatglm-01", port))
    pid = (await the(runtime, "chatglm-01")).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    await runtime.kill("chatglm-01", runtime_id)
    assert time.monotonic() - began < 2.0
    assert await runtime.list() == []


async def test_a_paused_container_is_listed_as_paused_and_a_kill_ends_it(
    runtime: DockerRuntime, engine: Engine, port: int
) -> None:
    runtime_id = await runtime.start(Launch("chatglm-01", port))
    with engine.client() as client:
        client.api.pause(runtime_id)
    assert (await the(runtime, "chatglm-01")).phase is Phase.PAUSED
    await runtime.kill("chatglm-01", runtime_id)
    assert await runtime.list() == []


async def test_a_death_is_seen_by_event_with_its_exit_code_long_before_a_poll(
    runtime: DockerRuntime, port: int
) -> None:
    changes = runtime.changes()
    assert await anext(changes) == ""  # the stream is open
    await runtime.start(Launch("chatglm-01", port))
    fact = await the(runtime, "chatglm-01")
    assert fact.pid is not None
    os.kill(fact.pid, signal.SIGKILL)
    died = time.monotonic()
    async with asyncio.timeout(10):
        async for name in changes:
            assert name == "chatglm-01"
            if (now := await the(runtime, "chatglm-01")).phase is Phase.EXITED:
                break
    seen = time.monotonic() - died
    print(f"a container's death was seen {seen * 1000:.0f} ms after SIGKILL")
    assert seen < 1.0
    assert now.exit_code == -9
    await changes.aclose()  # type: ignore[attr-defined]


async def test_closing_the_adapter_ends_its_changes_and_leaves_the_instances(
    docker_settings: DockerSettings, port: int
) -> None:
    runtime = DockerRuntime(docker_settings)
    changes = runtime.changes()
    assert await anext(changes) == ""
    await runtime.start(Launch("chatglm-01", port))
    await runtime.close()
    async with asyncio.timeout(5):
        assert {name async for name in changes} <= {"chatglm-01"}
    await eventually(lambda: threads("docker events") == 0)
    assert (await the(runtime, "chatglm-01")).phase is Phase.RUNNING


async def test_an_instance_that_crashes_leaves_its_last_output_when_it_is_cleared(
    docker_settings: DockerSettings, crash_image: str, port: int
) -> None:
    runtime = changed(docker_settings, image=crash_image)
    runtime_id = await runtime.start(Launch("chatglm-01", port))
    await eventually(lambda: has_ended(runtime))
    assert (await the(runtime, "chatglm-01")).exit_code == 1
    output = await runtime.clear("chatglm-01", runtime_id)
    assert set(output.splitlines()) == {  # stdout and stderr are two pipes: dockerd keeps no order between them
        "loading shard 1 of 3",
        "loading shard 2 of 3",
        "loading shard 3 of 3",
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    }
    assert await runtime.list() == []
    await runtime.close()


async def has_ended(runtime: DockerRuntime) -> bool:
    return (await the(runtime, "chatglm-01")).phase is Phase.EXITED


async def test_anonymous_volumes_go_with_their_container(runtime: DockerRuntime, engine: Engine, port: int) -> None:
    anonymous = changed(runtime._settings, volumes=("/scratch",))
    runtime_id = await anonymous.start(Launch("chatglm-01", port))
    with engine.client() as client:
        assert len(client.api.volumes()["Volumes"] or []) == 1
        await anonymous.kill("chatglm-01", runtime_id)
        assert not client.api.volumes()["Volumes"]
    await anonymous.close()


# --- starts that fail -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": "nowhere:1"}, r"no image nowhere:1 on this host: docker pull nowhere:1"),
        ({"network": "nonet"}, r"no network nonet: docker network create nonet"),
        ({"command": ("/no/such/program",)}, r"/no/such/program.*no such file.*docker run --rm"),
    ],
)
async def test_a_start_that_cannot_work_says_why_and_leaves_nothing(
    docker_settings: DockerSettings, port: int, changes: dict[str, Any], words: str
) -> None:
    runtime = changed(docker_settings, **changes)
    with pytest.raises(LaunchFailed, match=words):
        await runtime.start(Launch("chatglm-01", port))
    assert await runtime.list() == []
    await runtime.close()


@pytest.mark.parametrize("network", ["bridge", "host"])
async def test_a_port_that_somebody_else_has_is_named(docker_settings: DockerSettings, port: int, network: str) -> None:
    runtime = changed(docker_settings, network=network)
    squatter = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", port)
    with pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1 is taken by something else: ss -ltnp"):
        await runtime.start(Launch("chatglm-01", port))
    assert await runtime.list() == []
    squatter.close()
    await runtime.close()


async def test_a_container_is_reached_by_the_network_that_it_was_started_in_whatever_is_configured_later(
    runtime: DockerRuntime, docker_settings: DockerSettings, port_range: Callable[[int], range]
) -> None:
    ports = port_range(2)
    await runtime.start(Launch("chatglm-01", ports[0]))
    before = await the(runtime, "chatglm-01")
    runtime.reconfigure(replace(docker_settings, network="host"))
    await runtime.start(Launch("chatglm-02", ports[1]))
    assert (await the(runtime, "chatglm-01")).address == before.address
    new = await the(runtime, "chatglm-02")
    assert str(new.address) == f"127.0.0.1:{ports[1]}"
    newcomer = changed(docker_settings, network="host")  # and after a restart of the daemon
    assert {str(fact.address) for fact in await newcomer.list()} == {str(before.address), str(new.address)}
    for fact in (before, new):
        await eventually(lambda fact=fact: answers(fact))  # type: ignore[misc]
    await newcomer.close()


async def test_a_name_that_somebody_else_has_is_named_and_left_alone(
    runtime: DockerRuntime, engine: Engine, standin_image: str, port_range: Callable[[int], range]
) -> None:
    ports = port_range(2)
    with engine.client() as client:
        theirs = client.api.create_container(standin_image, name="chatglm-01")["Id"]
        with pytest.raises(LaunchFailed, match="name chatglm-01 is taken by a container that is not ours"):
            await runtime.start(Launch("chatglm-01", ports[0]))
        assert client.api.inspect_container(theirs)["Id"] == theirs
    await runtime.start(Launch("chatglm-02", ports[0]))
    with pytest.raises(LaunchFailed, match="a container chatglm-02 of ours already"):
        await runtime.start(Launch("chatglm-02", ports[1]))


async def test_a_runtime_hook_that_fails_is_told_in_its_words_and_leaves_nothing(
    runtime: DockerRuntime, engine: Engine, port: int
) -> None:
    with engine.hook("fail"), pytest.raises(LaunchFailed, match="nvidia-container-cli: driver not loaded"):
        await runtime.start(Launch("chatglm-01", port, ("GPU-aaaa",)))
    assert await runtime.list() == []


# --- output -----------------------------------------------------------------------------------------------------------


async def test_output_is_read_by_line_and_followed(runtime: DockerRuntime, port: int) -> None:
    runtime_id = await runtime.start(Launch("chatglm-01", port))
    await eventually(lambda: output_of(runtime))
    assert await output_of(runtime) == ["chatglm-01: listening on 0.0.0.0:8000"]
    followed = runtime.logs("chatglm-01", 10, follow=True)
    assert await anext(followed) == "chatglm-01: listening on 0.0.0.0:8000"
    await runtime.stop("chatglm-01", runtime_id, 10.0)
    assert [line async for line in followed] == ["chatglm-01: stopping, 0 in flight, 0 queued", "chatglm-01: stopped"]


async def test_a_follower_that_leaves_frees_its_thread(runtime: DockerRuntime, port: int) -> None:
    await runtime.start(Launch("chatglm-01", port))
    await eventually(lambda: output_of(runtime))
    followed = runtime.logs("chatglm-01", 10, follow=True)
    await anext(followed)
    assert threads("docker logs") == 1
    await followed.aclose()  # type: ignore[attr-defined]
    await eventually(lambda: threads("docker logs") == 0)


async def test_output_of_an_instance_that_there_is_not_is_a_key_error(runtime: DockerRuntime) -> None:
    with pytest.raises(KeyError):
        await anext(runtime.logs("chatglm-09", 10, follow=False))


async def output_of(runtime: DockerRuntime) -> list[str]:
    return [line async for line in runtime.logs("chatglm-01", 10, follow=False)]
