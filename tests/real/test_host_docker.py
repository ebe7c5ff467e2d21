"""One host on a real dockerd: instances, the daemon and dockerd itself die under load, and no user notices."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import docker
import pytest

from tests.real.daemon import PATIENT, Daemon, Document, daemon, on_docker, one, wall
from tests.real.dockerd import Engine
from tests.real.pressure import pressure

LONG_S = 6


@pytest.fixture(scope="module")
def running(engine: Engine, standin_image: str, port_range: Callable[[int], range]) -> Iterator[Daemon]:
    with daemon(port_range(20), PATIENT, on_docker(engine, standin_image)) as host:
        host.start()
        yield host
        host.stop()
        engine.remove_everything()


@pytest.fixture
def host(running: Daemon) -> Iterator[Daemon]:
    """The module's daemon with two instances that serve."""
    running.put_right()
    yield running
    running.assert_no_defects()


def lives(status: Document) -> dict[str, tuple[str, int]]:
    """Who lives, and how often each was restarted."""
    return {i["name"]: (i["runtime_id"], i["restarts"]) for i in status["instances"]}


def wants(status: Document) -> tuple[int, str, object]:
    return status["desired"], status["mode"], status["paused"]


def cycles(host: Daemon) -> tuple[float, float]:
    """How many cycles there were, and the seconds that they took."""
    metrics = host.metrics()
    name = "chatglm_ha_cycle_duration_seconds"
    return metrics[f"{name}_count"], metrics[f"{name}_sum"]


def is_serving_anew(name: str, restarts: int) -> Callable[[Document], bool]:
    def condition(status: Document) -> bool:
        instance = one(status, name)
        return bool(instance["state"] == "serving" and instance["restarts"] == restarts + 1)

    return condition


# --- an instance ------------------------------------------------------------------------------------------------------


def test_a_killed_instance_costs_no_request_and_serves_again_with_one_restart_counted(host: Daemon) -> None:
    victim = host.status()["instances"][0]
    name = victim["name"]
    with pressure(host.gateway) as load:
        load.wait_for_more(1.0)
        killed = time.time()
        os.kill(victim["pid"], signal.SIGKILL)
        host.wait_for(is_serving_anew(name, victim["restarts"]), "serves anew")
        load.wait_for_more(1.0)
    story = [entry for entry in host.history() if wall(entry["at"]) >= killed - 0.001 and entry["subject"] == name]
    for entry in story:
        print(f"{wall(entry['at']) - killed:7.3f} s  {entry['event']}: {entry['sentence']}")
    out = next(entry for entry in story if entry["sentence"].startswith("out of the gateway"))
    assert load.result.failures == []
    assert wall(story[0]["at"]) - killed < 1.0
    assert wall(out["at"]) - killed < 1.0
    after = one(host.wait_until_green(), name)
    assert after["restarts"] == victim["restarts"] + 1
    assert after["last_failure"]["reason"] == "killed by signal 9"
    assert any("killed by signal 9" in entry["sentence"] for entry in story)


def test_a_container_removed_by_hand_is_made_anew_without_a_failed_request(host: Daemon, engine: Engine) -> None:
    victim = host.status()["instances"][1]
    with pressure(host.gateway) as load, engine.client() as client:
        client.api.remove_container(victim["runtime_id"], force=True)
        host.wait_for(is_serving_anew(victim["name"], victim["restarts"]), "serves anew")
        load.wait_for_more(0.5)
    assert load.result.failures == []
    assert one(host.wait_until_green(), victim["name"])["runtime_id"] != victim["runtime_id"]


def test_a_container_restarted_by_hand_serves_again_without_a_failed_request(host: Daemon, engine: Engine) -> None:
    by_hand = host.status()["instances"][0]
    with pressure(host.gateway) as load, engine.client() as client:
        # Between the two halves of a restart the container is one that has ended: the daemon may replace it first.
        with suppress(docker.errors.APIError):
            client.api.restart(by_hand["runtime_id"])
        host.wait_for(lambda status: (i := one(status, by_hand["name"]))["pid"] != by_hand["pid"] and i["pid"], "anew")
        after = host.wait_until_green()
        load.wait_for_more(0.5)
    assert load.result.failures == []
    assert [instance["name"] for instance in after["instances"]] == ["chatglm-01", "chatglm-02"]


# --- the daemon -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [Daemon.kill, Daemon.stop], ids=["SIGKILL", "SIGTERM"])
def test_a_daemon_that_ends_and_comes_back_disturbs_nobody(host: Daemon, end: Callable[[Daemon], object]) -> None:
    before, upstream = host.status(), host.upstream()
    with pressure(host.gateway) as load:
        end(host)
        load.wait_for_more(1.5)
        host.start()
        host.wait_for(lambda status: status["settled"], "has asked everybody")
        load.wait_for_more(1.0)
        after = host.wait_until_green()
    assert load.result.failures == []
    assert lives(after) == lives(before)
    assert wants(after) == wants(before)
    assert host.upstream() == upstream  # nobody was un-routed, for not an instant: there was no reload
    assert host.generation() == before["nginx"]["generation"]
    assert all(instance["routed"] for instance in after["instances"])


def test_an_instance_that_dies_while_the_daemon_is_down_is_healed_when_it_starts(host: Daemon) -> None:
    victim, other = host.status()["instances"]
    host.stop()
    os.kill(victim["pid"], signal.SIGKILL)
    host.start()
    host.wait_for(is_serving_anew(victim["name"], victim["restarts"]), "serves anew")
    after = host.wait_until_green()
    assert one(after, victim["name"])["last_failure"]["reason"] == "killed by signal 9"
    assert one(after, other["name"])["runtime_id"] == other["runtime_id"]


def test_a_lost_memory_costs_no_instance(host: Daemon) -> None:
    assert host.hactl("scale", "3").code == 0
    before = host.wait_until_green(3)
    host.stop()
    for file in (host.folder / "state").glob("state.db*"):
        file.unlink()
    with pressure(host.gateway) as load:
        host.start()
        after = host.wait_until_green(3)
        load.wait_for_more(0.5)
    assert load.result.failures == []
    assert {n: i for n, (i, _) in lives(after).items()} == {n: i for n, (i, _) in lives(before).items()}
    assert host.hactl("scale", "2").code == 0


# --- dockerd ----------------------------------------------------------------------------------------------------------


def test_a_frozen_dockerd_costs_nobody_anything_and_status_says_so(host: Daemon, engine: Engine) -> None:
    before = host.status()
    with pressure(host.gateway) as load:
        with engine.frozen():
            frozen_at = time.monotonic()
            stale = host.wait_for(lambda status: status["stale"], "says that dockerd is silent")
            noticed = time.monotonic() - frozen_at
            count, seconds = cycles(host)
            began = time.monotonic()
            load.wait_for_more(3.0)
            spent = time.monotonic() - began
            count, seconds = cycles(host)[0] - count, cycles(host)[1] - seconds
            frozen = host.status()
            check = host.hactl("check")
        host.wait_for(lambda status: status["stale"] is None, "dockerd is heard again")
    after = host.wait_until_green()
    print(f"frozen, noticed after {noticed:.1f} s: {stale}")
    print(f"{count:.0f} cycles in {spent:.1f} s, {1000 * seconds / count:.2f} ms each; {check.out}")
    assert load.result.failures == []
    assert (stale["what"], frozen["serving"]) == ("dockerd", 2)
    assert noticed < 7.0  # a ping a second, and 5 s until silence counts as such
    assert "no answer in 5 s" in stale["sentence"]
    assert any("no answer in 5 s" in p["sentence"] and p["hint"] for p in frozen["problems"])
    assert frozen["health"] == "yellow"
    assert check.code == 1
    assert count >= 0.9 * spent - 1
    assert seconds / count < 0.1
    assert lives(after) == lives(before)


def test_an_instance_that_dies_while_dockerd_is_frozen_is_out_at_once_and_healed_afterwards(
    host: Daemon, engine: Engine
) -> None:
    victim = host.status()["instances"][1]
    with pressure(host.gateway) as load:
        with engine.frozen():
            killed = time.monotonic()
            os.kill(victim["pid"], signal.SIGKILL)
            host.wait_for(lambda status: not one(status, victim["name"])["routed"], "out of the upstream")
            out = time.monotonic() - killed
            host.wait_for(lambda status: status["stale"], "says that dockerd is silent")
            held = host.instance(victim["name"])
            load.wait_for_more(0.5)
        host.wait_for(is_serving_anew(victim["name"], victim["restarts"]), "serves anew")
    print(f"out of the gateway {out:.2f} s after its death, without dockerd")
    assert load.result.failures == []
    assert out < 1.0
    assert "waits: cannot reach dockerd" in held["reason"]
    assert one(host.wait_until_green(), victim["name"])["last_failure"]["reason"] == "killed by signal 9"


@pytest.mark.parametrize("graceful", [True, False], ids=["SIGTERM", "SIGKILL"])
def test_a_restart_of_dockerd_restarts_nobody(host: Daemon, engine: Engine, graceful: bool) -> None:
    before, upstream = host.status(), host.upstream()
    with pressure(host.gateway) as load:
        engine.restart(graceful)
        load.wait_for_more(1.0)
        host.wait_for(lambda status: status["stale"] is None, "dockerd is heard again")
        load.wait_for_more(1.0)
    after = host.wait_until_green()
    assert load.result.failures == []
    assert lives(after) == lives(before)
    assert host.upstream() == upstream


# --- more and fewer ---------------------------------------------------------------------------------------------------


def test_scaling_down_under_load_ends_nobody_who_still_works(host: Daemon) -> None:
    assert host.hactl("scale", "4").code == 0
    everybody = {instance["name"] for instance in host.wait_until_green(4)["instances"]}
    with ThreadPoolExecutor(8) as threads, pressure(host.gateway) as load:
        began = time.monotonic()
        long = [threads.submit(host.post, f"sleep {LONG_S}") for _ in range(2 * len(everybody))]
        host.wait_for(lambda status: status["traffic"]["in_flight"] >= len(long), "all are worked on")
        scaled = host.hactl("scale", "1", "--force")
        spent = time.monotonic() - began
        load.wait_for_more(0.5)
        answered_by = {request.result().json()["name"] for request in long}
    print(f"scale 4 -> 1 in {spent:.1f} s with requests of {LONG_S} s: {scaled.err}")
    (stayed,) = (instance["name"] for instance in host.wait_until_green(1)["instances"])
    assert load.result.failures == []
    assert scaled.code == 0
    assert stayed in everybody
    assert answered_by - {stayed}  # also by those who went
    assert spent >= LONG_S
    assert host.hactl("scale", "2").code == 0


# --- a port -----------------------------------------------------------------------------------------------------------


def test_a_container_whose_port_somebody_else_has_is_started_on_the_next_one_under_its_name(host: Daemon) -> None:
    before = host.instance("chatglm-02")["endpoint"]
    assert host.hactl("drain", "chatglm-02").code == 0
    with socket.create_server(("127.0.0.1", int(before.rpartition(":")[2]))):
        undrained = host.hactl("undrain", "chatglm-02")
        assert undrained.code == 0, undrained.err
        host.wait_until_green()
        after = host.instance("chatglm-02")
    assert after["endpoint"] != before
    assert after["attempts"]["failed"] == 0
    (told,) = (entry["sentence"] for entry in host.history() if entry["event"] == "port")
    assert told.endswith(f"it is started on port {after['endpoint'].rpartition(':')[2]} instead")
