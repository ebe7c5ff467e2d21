"""Instances on a host with graphics cards: spread by memory, one start at a time on a card, kept off others' memory."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.doubles.nvml.cards import EVERY
from tests.real.daemon import COMMAND_S, Document, Settings, as_processes
from tests.real.gpu_host import GIB, GpuHost, gpu_host

LOAD_S = 0.5

Make = Callable[..., AbstractContextManager[GpuHost]]


@pytest.fixture
def make(standin_server: Path, port_range: Callable[[int], range], tmp_path: Path, nvml_library: Path) -> Make:
    """`make(cards, instances, memory_gb, load_s)`: a host that is not started yet."""

    @contextmanager
    def host(cards: int, instances: int, memory_gb: float = 13.0, load_s: float = 0.0) -> Iterator[GpuHost]:
        runtime = as_processes(standin_server, {"LOAD_S": str(load_s)})
        settings: Settings = {
            "service": {"instances": instances, "min": 1, "max": 12},
            "gpu": {"memory_gb": memory_gb},
        }
        with gpu_host(port_range(20), tmp_path, nvml_library, runtime, settings, cards=cards) as made:
            yield made

    return host


@pytest.fixture
def stranger() -> Iterator[int]:
    """The pid of a living process that is none of the daemon's."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        yield process.pid
    finally:
        process.communicate()


def visible_to(instance: Document) -> str | None:
    """What a running instance has in CUDA_VISIBLE_DEVICES."""
    words = Path(f"/proc/{instance['pid']}/environ").read_bytes().decode().split("\0")
    return dict(word.partition("=")[::2] for word in words).get("CUDA_VISIBLE_DEVICES")


def started(status: Document) -> dict[str, float]:
    """When the process of each instance was made (Unix seconds)."""
    return {i["name"]: psutil.Process(i["pid"]).create_time() for i in status["instances"]}


def test_six_instances_of_13_gb_get_six_of_eight_cards_of_24_gb(make: Make) -> None:
    with make(cards=8, instances=6) as host:
        host.start()
        status = host.daemon.wait_until_green(6)
        assert len(set(host.places().values())) == 6
        assert [visible_to(instance) for instance in status["instances"]] == [i["gpus"][0] for i in status["instances"]]
        by_card = {gpu["uuid"]: gpu["instances"] for gpu in status["gpus"]}
        assert by_card == {
            card.uuid: [name for name, uuid in host.places().items() if uuid == card.uuid] for card in host.nvml.cards
        }


def test_of_6_gb_at_most_three_get_a_card_of_24_gb_no_two_load_on_one_at_once_and_the_seventh_waits(
    make: Make,
) -> None:
    with make(cards=2, instances=6, memory_gb=6.0, load_s=LOAD_S) as host:
        host.start()
        made = started(host.daemon.wait_until_green(6))
        places = host.places()
        assert sorted(Counter(places.values()).values()) == [3, 3]
        for uuid in set(places.values()):
            times = sorted(made[name] for name, place in places.items() if place == uuid)
            apart = [later - earlier for earlier, later in pairwise(times)]
            print(f"starts on {uuid} are {apart} s apart")
            assert min(apart) >= LOAD_S, "two loaded at once"
        host.occupy(bytes_=5 * GIB)  # less than was promised: the rest of the promise stays taken
        refused = host.daemon.hactl("scale", "7", "--no-wait")
        assert (refused.code, host.daemon.status()["desired"]) == (5, 6)
        assert "7 instances need 1 more place on the GPUs: no GPU has 6.0 GB for it: GPU 0: " in refused.err
        assert host.daemon.hactl("scale", "7", "--no-wait", "--force").code == 0
        told = host.daemon.wait_for(
            lambda s: next((p for p in s["problems"] if "no GPU has 6.0 GB for it" in p["sentence"]), None), "waits"
        )
        assert told["subject"] == "chatglm-07"
        assert host.places() == places


def test_a_foreign_process_keeps_newcomers_off_its_card_until_it_ends(make: Make, stranger: int) -> None:
    with make(cards=3, instances=3) as host:
        taken, *_ = host.nvml.cards
        taken.processes[stranger] = 20 * GIB
        host.nvml.tell()
        host.start()
        waiting = host.daemon.wait_for(
            lambda s: next((i for i in s["instances"] if "no GPU has 13.0 GB" in i["reason"]), None), "one waits"
        )
        assert "GPU 0: 1.6 GB for newcomers, 20.0 GB held by processes that are none of ours" in waiting["reason"]
        assert taken.uuid not in host.places().values()
        assert waiting["reason"] in [problem["sentence"] for problem in host.daemon.status()["problems"]]
        assert host.shown(taken)["memory_foreign_bytes"] == 20 * GIB
        taken.processes.clear()
        host.nvml.tell()
        host.daemon.wait_until_green(3)
        assert host.places()[waiting["name"]] == taken.uuid


def test_a_start_waits_until_the_memory_of_the_life_before_is_free(make: Make) -> None:
    with make(cards=1, instances=1) as host:
        host.start()
        host.daemon.wait_until_green(1)
        host.occupy()
        os.kill(host.daemon.instance("chatglm-01")["pid"], signal.SIGKILL)
        host.daemon.wait_for(
            lambda s: "GPU 0: 9.6 GB for newcomers, 12.0 GB held by no living process" in s["instances"][0]["reason"],
            "waits for its card",
        )
        host.nvml.cards[0].processes.clear()
        host.nvml.tell()
        host.daemon.wait_until_green(1)


def test_a_daemon_that_was_killed_reads_the_cards_of_its_instances_back(make: Make) -> None:
    with make(cards=4, instances=3) as host:
        host.start()
        before = host.daemon.wait_until_green(3)
        host.daemon.kill()
        host.start()
        after = host.daemon.wait_until_green(3)
        kept = [[(i["name"], i["runtime_id"], i["gpus"]) for i in status["instances"]] for status in (before, after)]
        assert kept[0] == kept[1]
        assert host.daemon.hactl("scale", "4").code == 0
        assert len(set(host.places().values())) == 4


def is_connected(command: subprocess.Popen[str]) -> bool:
    """Whether it speaks with the daemon, or has heard what it asked for already."""
    return command.poll() is not None or bool(psutil.Process(command.pid).net_connections("unix"))


def test_a_command_right_after_the_start_waits_for_the_first_look_at_the_cards_and_is_decided_then(make: Make) -> None:
    with make(cards=4, instances=3) as host:
        host.start()
        host.daemon.wait_until_green(3)
        host.daemon.stop()
        host.nvml.hanging.add(EVERY)  # the driver takes a moment to answer
        host.nvml.tell()
        host.start()
        commands = ["scale", "4"], ["restart", "chatglm-01"], ["scale", "4", "--dry-run"]
        asked = [host.daemon.begin(*words) for words in commands]
        host.daemon.wait_for(lambda s: s["settled"] and all(map(is_connected, asked)), "they have asked")
        assert host.daemon.status()["gpu_driver"]["state"] == "unknown"
        assert [command.poll() for command in asked] == [None] * 3
        host.nvml.hanging.clear()
        host.nvml.tell()
        said = [command.communicate(timeout=COMMAND_S) for command in asked]
        assert [command.returncode for command in asked] == [0] * 3, said
        host.daemon.wait_until_green(4)
