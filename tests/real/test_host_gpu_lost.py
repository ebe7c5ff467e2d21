"""A host that loses one graphics card after the other under load: instances move, and where they cannot, it says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.doubles.nvml.cards import EVERY, LOST
from tests.real.daemon import Document, Settings, as_processes, one, wall
from tests.real.gpu_host import GpuHost, gpu_host
from tests.real.pressure import pressure

LOAD_S = 1.0
OFF_THE_BUS = "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
CARDS = 4

TWO: Settings = {"service": {"instances": 2, "min": 2, "max": 4}, "health": {"start_timeout": 30.0}}


@pytest.fixture
def host(
    standin_server: Path, port_range: Callable[[int], range], tmp_path: Path, nvml_library: Path
) -> Iterator[GpuHost]:
    runtime = as_processes(standin_server, {"LOAD_S": str(LOAD_S)})
    with gpu_host(port_range(20), tmp_path, nvml_library, runtime, TWO, cards=CARDS) as host:
        host.start()
        host.daemon.wait_until_green(2)
        yield host


def serves_elsewhere(name: str, uuid: str) -> Callable[[Document], Document | None]:
    def condition(status: Document) -> Document | None:
        instance = one(status, name)
        return instance if instance["state"] == "serving" and instance["gpus"] not in ([], [uuid]) else None

    return condition


def lose(host: GpuHost, name: str) -> tuple[str, float]:
    """The card of that instance falls off the bus. Returns where it serves then, and the seconds until it did."""
    uuid = host.places()[name]
    card = host.card(uuid)
    told = host.xid(card, 79, words=OFF_THE_BUS)
    card.failing[EVERY] = LOST
    host.nvml.tell()
    after = host.daemon.wait_for(serves_elsewhere(name, uuid), f"{name} serves on another card")
    host.problem_of(card, "quarantined", "needs a reboot")
    return after["gpus"][0], wall(after["since"]) - told


def test_a_card_that_falls_off_the_bus_costs_no_request_and_a_second_neither(host: GpuHost) -> None:
    first, second = sorted(host.places())
    lost = host.places()
    others = {i["name"]: i["runtime_id"] for i in host.daemon.status()["instances"]}
    with pressure(host.daemon.gateway) as load:
        to, seconds = lose(host, first)
        print(f"{first} serves on another card {seconds:.2f} s after the line, {LOAD_S:g} s of which it loads")
        assert host.daemon.instance(second)["runtime_id"] == others[second]
        to_too, seconds_too = lose(host, second)
        print(f"{second} {seconds_too:.2f} s after the second line")
        load.wait_for_more(0.5)
    assert load.result.failures == []
    assert len({lost[first], lost[second], to, to_too}) == CARDS
    reason = host.daemon.instance(first)["last_failure"]["reason"]
    assert reason == f"GPU {host.index(host.card(lost[first]))} is given up: it has fallen off the bus (Xid 79)"


def test_a_lost_card_is_red_with_what_a_person_has_to_do_and_stays_so_over_restarts_of_the_daemon(
    host: GpuHost,
) -> None:
    name = "chatglm-01"
    uuid = host.places()[name]
    lose(host, name)
    problem = host.problem_of(host.card(uuid), "quarantined")
    assert problem["sentence"] == "quarantined: it has fallen off the bus (Xid 79); needs a reboot"
    assert problem["hint"] == "reboot the host; drain it first where others can take its work"
    card = host.shown(host.card(uuid))
    assert card["state"] == "lost"
    assert card["reason"] == "it has fallen off the bus (Xid 79); needs a reboot"
    before = host.daemon.wait_for(lambda status: status["serving"] == 2 and status, "both serve")
    host.daemon.kill()
    host.start()  # NVML lists the card still, and refuses even its UUID
    assert is_lost_and_nobody_was_touched(host, uuid, before)
    host.daemon.stop()
    host.nvml.cards.remove(host.card(uuid))
    host.nvml.tell()
    host.start()  # NVML does not list it any more
    assert is_lost_and_nobody_was_touched(host, uuid, before)
    host.daemon.hactl("scale", "3")
    assert uuid not in host.places().values()


def is_lost_and_nobody_was_touched(host: GpuHost, uuid: str, before: Document) -> bool:
    def lost(status: Document) -> Document | None:
        gpu = next((gpu for gpu in status["gpus"] if gpu["uuid"] == uuid), None)
        same = gpu is not None and gpu["state"] == "lost" and "fallen off the bus (Xid 79)" in gpu["reason"]
        told = any("quarantined: it has fallen off the bus (Xid 79)" in p["sentence"] for p in status["problems"])
        return status if same and told and status["settled"] else None

    after = host.daemon.wait_for(lost, "the card is known to be lost")
    lives = [[(i["name"], i["runtime_id"], i["gpus"]) for i in status["instances"]] for status in (before, after)]
    return lives[0] == lives[1] and after["serving"] == 2


def test_when_no_healthy_card_is_left_what_answers_goes_on_and_what_dies_waits_and_says_so(host: GpuHost) -> None:
    for name in ("chatglm-01", "chatglm-02"):
        lose(host, name)
    last = host.daemon.status()["instances"]
    with pressure(host.daemon.gateway) as load:
        for instance in last:
            host.xid(host.card(instance["gpus"][0]), 79, words=OFF_THE_BUS)
        for instance in last:
            host.problem_of(host.card(instance["gpus"][0]), "quarantined", "needs a reboot")
        kept = [host.daemon.instance(instance["name"]) for instance in last]
        load.wait_for_more(0.5)
        os.kill(last[0]["pid"], signal.SIGKILL)
        host.daemon.wait_for(
            lambda status: "no healthy GPU is left" in one(status, last[0]["name"])["reason"] and status, "waits"
        )
        load.wait_for_more(0.5)
    assert load.result.failures == []  # the other one answers
    assert [(i["state"], i["runtime_id"]) for i in kept] == [("serving", i["runtime_id"]) for i in last]
    assert all("no other GPU has room for it" in instance["reason"] for instance in kept)
    status = host.daemon.status()
    dead, alive = one(status, last[0]["name"]), one(status, last[1]["name"])
    assert dead["reason"].startswith("waits for a GPU: no healthy GPU is left: GPU 0: it has fallen off the bus")
    assert (dead["state"], alive["state"]) == ("backoff", "serving")
    assert dead["reason"] in [problem["sentence"] for problem in status["problems"]]
    assert host.daemon.hactl("check").code == 1
    assert "needs a reboot" in host.daemon.hactl("explain", dead["name"]).out
