"""Instances on a real dockerd that crash over and over, or hang without dying: given up or replaced, users unharmed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.real.daemon import PATIENT, Document, daemon, on_docker, one
from tests.real.dockerd import Engine
from tests.real.pressure import pressure

ATTEMPTS = 4


@pytest.fixture
def ports(port_range: Callable[[int], range]) -> range:
    return port_range(20)


@pytest.fixture
def empty(engine: Engine) -> Iterator[Engine]:
    yield engine
    engine.remove_everything()


def test_a_crash_loop_is_given_up_with_its_reason_while_the_other_serves(
    empty: Engine, standin_image: str, crash_image: str, ports: range
) -> None:
    few = {"repair": {"attempts": ATTEMPTS, "backoff": 0.5, "backoff_max": 2.0}}
    with daemon(ports, PATIENT, on_docker(empty, standin_image), few) as host:
        host.start()
        stays, crashes = (instance["name"] for instance in host.wait_until_green()["instances"])
        host.configure({"docker": {"image": crash_image}})
        assert host.hactl("config", "reload").code == 0
        with pressure(host.gateway) as load:
            # Asked seldom meanwhile: answering is work of the daemon too.
            program = psutil.Process(host.pid)
            used, began = sum(program.cpu_times()[:2]), time.monotonic()
            assert host.hactl("restart", crashes).code == 1
            parked = host.wait_for(
                lambda status: (i := one(status, crashes))["state"] == "parked" and i, "is given up", 40, every=0.5
            )
            share = (sum(program.cpu_times()[:2]) - used) / (time.monotonic() - began)
            load.wait_for_more(0.5)
        status = host.status()
        print(f"CPU of the daemon while it crashed {ATTEMPTS} times under load: {100 * share:.1f} % of one core")
        assert load.result.failures == []
        assert (status["health"], status["serving"], one(status, stays)["state"]) == ("yellow", 1, "serving")
        assert parked["colour"] == "red"
        assert parked["reason"].startswith(f"parked: exited 1, {ATTEMPTS} failures; tried again in ")
        assert parked["attempts"] == {"failed": ATTEMPTS, "of": ATTEMPTS}
        (problem,) = status["problems"]
        assert (problem["subject"], problem["sentence"]) == (crashes, one(status, crashes)["reason"])
        assert problem["hint"] == f"chatglm-hactl logs {crashes} --last-failure"
        assert problem["hint"] in host.hactl("status").out
        last = host.hactl(*problem["hint"].split()[1:])
        assert last.code == 0
        assert sorted(last.out.splitlines()) == [  # dockerd keeps the order within a stream, not between the two
            "RuntimeError: CUDA error: no kernel image is available for execution on the device",
            "loading shard 1 of 3",
            "loading shard 2 of 3",
            "loading shard 3 of 3",
        ]
        assert host.hactl("check").code == 1
        assert share < 0.10  # of one core; the promise of 2 % is measured where nobody else works

        host.configure({"docker": {"image": standin_image}})
        assert host.hactl("config", "reload").code == 0
        assert host.hactl("restart", crashes).code == 0
        host.wait_until_green()


@pytest.mark.parametrize("form", ["progress", "opaque"])
def test_a_frozen_container_is_ended_and_replaced_without_a_failed_request(
    empty: Engine, standin_image: str, ports: range, form: str
) -> None:
    """`opaque`: its health answers tell nothing of its work, so it counts as hung only after `hang_after`."""
    soon = {"health": {"hang_after": 3.0, **PATIENT["health"]}}
    with daemon(ports, PATIENT, soon, on_docker(empty, standin_image, {"HEALTH": form})) as host:
        host.start()
        victim = host.wait_until_green()["instances"][0]
        with pressure(host.gateway) as load:
            frozen_at = time.monotonic()
            os.kill(victim["pid"], signal.SIGSTOP)
            seen: list[Document] = []
            host.wait_for(lambda status: seen.append(one(status, victim["name"])) or not seen[-1]["routed"], "is out")
            out = time.monotonic() - frozen_at
            host.wait_for(
                lambda status: (i := one(status, victim["name"]))["state"] == "serving" and i["restarts"] == 1,
                "a new one serves",
                40,
            )
            load.wait_for_more(0.5)
        print(f"{form}: out of the gateway after {out:.1f} s, slowest answer {load.result.slowest:.1f} s")
        after = one(host.wait_until_green(), victim["name"])
        assert load.result.failures == []
        assert after["runtime_id"] != victim["runtime_id"]
        assert "in flight" in after["last_failure"]["reason"] or "missed" in after["last_failure"]["reason"]
