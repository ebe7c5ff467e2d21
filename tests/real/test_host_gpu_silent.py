"""A host whose NVIDIA driver hangs, for one card and for all: the cycle keeps its pace, and who serves goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.doubles.nvml.cards import EVERY
from tests.doubles.nvml.never import mount_that_never_answers
from tests.real.daemon import Document, Settings, as_processes, one
from tests.real.gpu_host import GpuHost, gpu_host
from tests.real.pressure import pressure

CARDS = 3
P99_S = 0.1  # promised: no cycle is slowed down by a driver
AT_ONCE_S = 2.0

TWO: Settings = {"service": {"instances": 2, "min": 2, "max": 4}}


@pytest.fixture
def host(
    request: pytest.FixtureRequest,
    standin_server: Path,
    port_range: Callable[[int], range],
    tmp_path: Path,
    nvml_library: Path,
) -> Iterator[GpuHost]:
    cards = getattr(request, "param", CARDS)
    with gpu_host(port_range(20), tmp_path, nvml_library, as_processes(standin_server), TWO, cards=cards) as host:
        host.start()
        host.daemon.wait_until_green(2)
        yield host


def cycles(host: GpuHost) -> dict[float, float]:
    """How many cycles took at most so many seconds, by those seconds."""
    name = 'chatglm_ha_cycle_duration_seconds_bucket{le="'
    return {
        float(key.removeprefix(name).removesuffix('"}')): count
        for key, count in host.daemon.metrics().items()
        if key.startswith(name)
    }


def p99(before: dict[float, float], after: dict[float, float]) -> tuple[float, int]:
    """An upper bound of the 99th percentile of the cycles between, in seconds, and their number."""
    between = {bound: after[bound] - before[bound] for bound in sorted(after)}
    count = between[math.inf]
    return next(bound for bound, so_far in between.items() if so_far >= 0.99 * count), int(count)


def lives(status: Document) -> list[tuple[str, str, list[str]]]:
    return [(i["name"], i["runtime_id"], i["gpus"]) for i in status["instances"]]


def stops_and_starts_at_once(host: GpuHost) -> None:
    began = time.monotonic()
    assert host.daemon.stop() == 0
    stopped = time.monotonic() - began
    host.start()
    print(f"stopped in {stopped:.2f} s, answers again {time.monotonic() - began:.2f} s after that was asked")
    assert stopped < AT_ONCE_S


def test_a_card_whose_calls_never_return_is_suspect_and_its_instance_serves_on(host: GpuHost) -> None:
    before, count = host.daemon.status(), cycles(host)
    card = host.card(before["instances"][0]["gpus"][0])
    with pressure(host.daemon.gateway) as load:
        began = time.monotonic()
        card.hanging.add(EVERY)
        host.nvml.tell()
        problem = host.problem_of(card, "NVML's calls about it do not return")
        noticed = time.monotonic() - began
        load.wait_for_more(1.0)
    slowest, number = p99(count, cycles(host))
    print(f"noticed after {noticed:.1f} s; 99 of 100 of {number} cycles took at most {1000 * slowest:g} ms")
    assert load.result.failures == []
    assert slowest <= P99_S
    assert "judged by its own probe" in problem["sentence"]
    assert problem["hint"].startswith(f"nvidia-smi -q -i {card.uuid}")
    states = {gpu["uuid"]: gpu["state"] for gpu in host.daemon.status()["gpus"]}
    assert states == {one.uuid: "suspect" if one is card else "ok" for one in host.nvml.cards}
    assert lives(host.daemon.status()) == lives(before)
    assert host.daemon.hactl("scale", "3").code == 0
    assert host.places()["chatglm-03"] != card.uuid
    stops_and_starts_at_once(host)
    host.daemon.wait_for(lambda status: status["settled"] and status["serving"] == 3 and status, "all serve on")


@pytest.mark.parametrize("host", [2], indirect=True)
def test_a_driver_that_answers_for_no_card_is_told_as_such_and_nothing_that_runs_is_touched(host: GpuHost) -> None:
    before, count = host.daemon.status(), cycles(host)
    with pressure(host.daemon.gateway) as load:
        for card in host.nvml.cards:
            card.hanging.add(EVERY)
        host.nvml.tell()
        told = host.daemon.wait_for(wedged, "the driver hangs", within=30.0)
        load.wait_for_more(1.0)
    slowest, number = p99(count, cycles(host))
    print(f"{told['sentence']}; 99 of 100 of {number} cycles took at most {1000 * slowest:g} ms")
    assert load.result.failures == []
    assert slowest <= P99_S
    assert told["subject"] == "GPUs"
    assert lives(host.daemon.status()) == lives(before)
    assert host.daemon.hactl("scale", "3", "--no-wait").code == 5
    assert host.daemon.hactl("scale", "3", "--no-wait", "--force").code == 0
    host.daemon.wait_for(
        lambda s: any("waits for a GPU: the NVIDIA driver hangs" in i["reason"] for i in s["instances"]), "waits"
    )
    stops_and_starts_at_once(host)
    after = host.daemon.wait_for(lambda status: status["settled"] and status["serving"] == 2 and status, "serve on")
    assert lives(after)[:2] == lives(before)
    for card in host.nvml.cards:
        card.hanging.clear()
    host.nvml.tell()
    host.daemon.wait_for(lambda s: "no GPU has 13.0 GB" in one(s, "chatglm-03")["reason"], "the cards are seen again")


def wedged(status: Document) -> Document | None:
    return next((problem for problem in status["problems"] if "the NVIDIA driver hangs" in problem["sentence"]), None)


def test_a_driver_that_hangs_unkillably_holds_nothing_of_the_daemon_back(host: GpuHost, tmp_path: Path) -> None:
    """In D state no signal ends whoever is in the call: not the one that the daemon sends either."""
    before, count = host.daemon.status(), cycles(host)
    card = host.card(before["instances"][0]["gpus"][0])
    with mount_that_never_answers(tmp_path / "never") as never:
        card.block = never
        host.nvml.tell()
        host.problem_of(card, "NVML's calls about it do not return")
        slowest, number = p99(count, cycles(host))
        print(f"99 of 100 of {number} cycles took at most {1000 * slowest:g} ms")
        assert slowest <= P99_S
        assert stuck(host), "nobody hangs: the test tests nothing"
        stops_and_starts_at_once(host)
        host.daemon.kill()
        host.start()
        after = host.daemon.wait_for(lambda status: status["settled"] and status, "has asked everybody")
        assert lives(after) == lives(before)
        card.block = None
        host.nvml.tell()


def stuck(host: GpuHost) -> list[int]:
    """Processes in D state that were made to ask these cards."""
    found = []
    for process in psutil.process_iter(["status", "cmdline"]):
        if process.info["status"] == psutil.STATUS_DISK_SLEEP and "gpu_child.py" in " ".join(
            process.info["cmdline"] or []
        ):
            found.append(process.pid)
    return found
