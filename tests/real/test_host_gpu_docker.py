"""Containers on a host with graphics cards: each has its own by UUID, and is made anew when it has lost it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from model_api import memory
from tests.real.daemon import Document, Settings, on_docker, one
from tests.real.dockerd import Engine
from tests.real.gpu_host import GpuHost, gpu_host
from tests.real.pressure import pressure

CARDS = 4
LOST = "the GPU is lost: /dev/nvidiactl: Operation not permitted; the container has to be made anew"
TAKEN_AWAY = """
import os, stat, sys
sys.path.insert(0, "/code")
from memory import DEVICE_FILE, why_taken_away
print(why_taken_away(DEVICE_FILE))
os.mknod(DEVICE_FILE, stat.S_IFCHR | 0o666, os.makedev(195, 255))
print(why_taken_away(DEVICE_FILE))
"""
TWO: Settings = {"service": {"instances": 2, "min": 2, "max": 4}}


@pytest.fixture
def host(
    engine: Engine, standin_image: str, port_range: Callable[[int], range], tmp_path: Path, nvml_library: Path
) -> Iterator[GpuHost]:
    runtime = on_docker(engine, standin_image)
    with gpu_host(port_range(20), tmp_path, nvml_library, runtime, TWO, cards=CARDS) as host:
        host.start()
        host.daemon.wait_until_green(2)
        yield host
        host.daemon.stop()
        engine.remove_everything()


def given(engine: Engine, instance: Document) -> list[str]:
    """The cards that the container asks for, as dockerd tells it."""
    with engine.client() as client:
        (request,) = client.api.inspect_container(instance["runtime_id"])["HostConfig"]["DeviceRequests"]
    return list(request["DeviceIDs"])


def visible_to(instance: Document) -> str | None:
    """What NVIDIA's hook is told by dockerd, in the environment of the container's process."""
    words = Path(f"/proc/{instance['pid']}/environ").read_bytes().decode().split("\0")
    return dict(word.partition("=")[::2] for word in words).get("NVIDIA_VISIBLE_DEVICES")


def test_each_container_gets_its_card_by_uuid_and_a_daemon_that_was_killed_reads_that_back(
    host: GpuHost, engine: Engine
) -> None:
    before = host.daemon.status()
    assert len(set(host.places().values())) == 2
    for instance in before["instances"]:
        assert given(engine, instance) == instance["gpus"]
        assert visible_to(instance) == instance["gpus"][0]
    host.daemon.kill()
    host.start()
    after = host.daemon.wait_until_green(2)
    lives = [[(i["name"], i["runtime_id"], i["gpus"]) for i in status["instances"]] for status in (before, after)]
    assert lives[0] == lives[1]
    assert host.daemon.hactl("scale", "3").code == 0
    assert len(set(host.places().values())) == 3


def test_a_fault_of_a_process_in_a_container_restarts_that_container_alone(host: GpuHost) -> None:
    victim, other = host.daemon.status()["instances"]
    host.xid(host.card(victim["gpus"][0]), 31, pid=victim["pid"])
    after = host.daemon.wait_for(
        lambda status: (i := one(status, victim["name"]))["runtime_id"] != victim["runtime_id"] and i["routed"] and i,
        "serves anew",
    )
    assert after["gpus"] == victim["gpus"]
    assert host.daemon.instance(other["name"])["runtime_id"] == other["runtime_id"]


def test_a_container_that_says_that_it_has_lost_its_gpu_is_made_anew_on_the_same_card(
    host: GpuHost, engine: Engine
) -> None:
    victim, other = host.daemon.status()["instances"]
    with pressure(host.daemon.gateway) as load:
        httpx.post(f"http://{victim['endpoint']}/standin", json={"mode": "sick", "reason": LOST}, timeout=10.0)
        after = host.daemon.wait_for(
            lambda s: (i := one(s, victim["name"]))["runtime_id"] != victim["runtime_id"] and i["routed"] and i,
            "serves anew",
            within=40.0,
        )
        load.wait_for_more(0.5)
    assert load.result.failures == []
    assert after["gpus"] == victim["gpus"]
    assert given(engine, after) == victim["gpus"]
    assert LOST in after["last_failure"]["reason"]
    assert host.daemon.instance(other["name"])["runtime_id"] == other["runtime_id"]


def test_a_device_that_a_container_may_not_open_is_one_that_was_taken_away(engine: Engine, standin_image: str) -> None:
    """A container of dockerd's may make the node and not open it: what is left after `systemctl daemon-reload`."""
    program = [str(Path(sys.executable).resolve()), "-S", "-E", "-c", TAKEN_AWAY]
    with engine.client() as client:
        said = client.containers.run(
            standin_image, program, volumes=[f"{Path(memory.__file__).parent}:/code:ro"], remove=True
        )
    assert said.decode().splitlines() == ["None", LOST]
