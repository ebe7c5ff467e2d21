"""The operator's commands on a real daemon with real instances and a real nginx: what they do, say and exit with."""

from __future__ import annotations

import os
import pwd
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from hasupervisor.act.nginx import process
from tests.real.daemon import BIN, PATIENT, Daemon, Document, as_processes, daemon, one, run
from tests.real.pressure import pressure

ONE, TWO = "chatglm-01", "chatglm-02"
MYSELF = f"{pwd.getpwuid(os.geteuid()).pw_name} (uid {os.geteuid()})"


@pytest.fixture(scope="module")
def running(standin_server: Path, port_range: Callable[[int], range]) -> Iterator[Daemon]:
    with daemon(port_range(20), PATIENT, as_processes(standin_server)) as host:
        host.start()
        yield host


@pytest.fixture
def host(running: Daemon) -> Iterator[Daemon]:
    """The module's daemon with two instances that serve."""
    running.put_right()
    yield running
    running.assert_no_defects()


def restarts(status: Document) -> dict[str, int]:
    return {instance["name"]: instance["restarts"] for instance in status["instances"]}


def one_more(before: dict[str, int], *names: str) -> dict[str, int]:
    return {name: count + (1 if name in names else 0) for name, count in before.items()}


def streamed(host: Daemon) -> str:
    """What came of a stream of four seconds through the gateway, cut or whole."""
    body = {"messages": [{"role": "user", "content": "sleep 4"}], "stream": True}
    text = ""
    with (
        suppress(httpx.TransportError),
        httpx.stream("POST", f"{host.gateway}/v1/chat/completions", json=body, timeout=30.0) as answer,
    ):
        for piece in answer.iter_text():
            text += piece
    return text


# --- pause ------------------------------------------------------------------------------------------------------------


def test_a_pause_holds_healing_and_says_so_until_resume(host: Daemon) -> None:
    before = restarts(host.status())
    assert host.hactl("pause", "--reason", "new driver").code == 0
    os.kill(host.instance(TWO)["pid"], signal.SIGKILL)
    down = host.wait_for(lambda status: (i := one(status, TWO))["state"] == "backoff" and i, "is held")
    seen = host.metrics()["chatglm_ha_cycle_duration_seconds_count"]
    host.wait_for(lambda _: host.metrics()["chatglm_ha_cycle_duration_seconds_count"] >= seen + 3, "three more cycles")
    held = host.status()
    assert one(held, TWO)["state"] == "backoff"
    assert f"paused by {MYSELF}" in one(held, TWO)["reason"]
    assert (held["paused"]["by"], held["paused"]["reason"]) == (MYSELF, "new driver")
    assert host.post().status_code == 200
    table = host.hactl("status")
    assert MYSELF in table.out + table.err
    assert "new driver" in table.out + table.err
    check = host.hactl("check")
    assert (check.code, "new driver" in check.out) == (1, True)
    assert down["restarts"] == before[TWO]

    assert host.hactl("resume").code == 0
    after = host.wait_until_green()
    assert restarts(after) == one_more(before, TWO)
    assert after["paused"] is None


def test_a_pause_ends_by_itself_when_its_time_is_over(host: Daemon) -> None:
    assert host.hactl("pause", "--for", "1").code == 0
    assert host.status()["paused"]["until"] is not None
    host.wait_for(lambda status: status["paused"] is None, "is over")
    assert any("has run out" in entry["sentence"] for entry in host.history())


# --- drain and restart ------------------------------------------------------------------------------------------------


def test_a_drained_instance_stays_out_over_a_restart_of_the_daemon_until_undrain(host: Daemon) -> None:
    before = restarts(host.status())
    with pressure(host.gateway) as load:
        drained = host.hactl("drain", TWO)
        assert drained.code == 0
        assert (host.instance(TWO)["state"], host.instance(TWO)["routed"]) == ("parked", False)
        host.kill()
        host.start()
        host.wait_for(lambda status: status["settled"], "has asked everybody")
        out = host.instance(TWO)
        assert (out["state"], out["reason"], out["colour"]) == ("parked", "drained by hand, stopped", "yellow")
        assert host.hactl("undrain", TWO).code == 0
        host.wait_until_green()
    assert load.result.failures == []
    assert restarts(host.status()) == one_more(before, TWO)


def test_a_drain_waits_for_the_streams_of_its_instance(host: Daemon) -> None:
    port = host.instance(TWO)["endpoint"].rpartition(":")[2]
    with ThreadPoolExecutor(4) as threads:
        streams = [threads.submit(streamed, host) for _ in range(4)]
        host.wait_for(lambda status: one(status, TWO)["in_flight"] >= 1, "a stream of it is under way")
        drained = host.hactl("drain", TWO)
        of_it = [text.result() for text in streams if f'"name": "{port}"' in text.result()]
    assert drained.code == 0
    assert of_it, "none of the streams went to it"
    assert all(stream.result().endswith("data: [DONE]\n\n") for stream in streams)
    assert host.instance(TWO)["state"] == "parked"
    assert host.hactl("undrain", TWO).code == 0


def test_a_restart_by_hand_drains_first_and_costs_no_request(host: Daemon) -> None:
    before = host.status()
    with pressure(host.gateway) as load:
        done = host.hactl("restart", TWO)
        load.wait_for_more(0.5)
    assert load.result.failures == []
    assert done.code == 0
    assert restarts(host.wait_until_green()) == one_more(restarts(before), TWO)
    assert host.instance(TWO)["pid"] != one(before, TWO)["pid"]


def test_a_restart_of_all_goes_one_after_another_and_costs_no_request(host: Daemon) -> None:
    before = restarts(host.status())
    with pressure(host.gateway) as load:
        done = host.hactl("restart", "--all")
        load.wait_for_more(0.5)
    assert load.result.failures == []
    assert done.code == 0
    assert "2 of 2 restarted" in done.err
    assert restarts(host.wait_until_green()) == one_more(before, ONE, TWO)


# --- all at once ------------------------------------------------------------------------------------------------------


def test_probes_that_fail_everywhere_while_users_are_served_are_one_problem_and_cost_nobody_anything(
    host: Daemon,
) -> None:
    before = host.status()
    with pressure(host.gateway) as load:
        for instance in before["instances"]:
            httpx.post(f"http://{instance['endpoint']}/standin", json={"mode": "health500"}).raise_for_status()
        found = host.wait_for(common_cause, "one problem named common cause")
        load.wait_for_more(1.0)
        assert all(instance["routed"] for instance in host.status()["instances"])
        for instance in before["instances"]:
            httpx.post(f"http://{instance['endpoint']}/standin", json={"mode": "ok"}).raise_for_status()
        after = host.wait_until_green()
    assert load.result.failures == []
    assert len(found) == 1
    assert "2 of 2 instances turned bad" in found[0]["sentence"]
    assert restarts(after) == restarts(before)
    assert {i["name"]: i["pid"] for i in after["instances"]} == {i["name"]: i["pid"] for i in before["instances"]}


def common_cause(status: Document) -> list[Document]:
    return [problem for problem in status["problems"] if problem["sentence"].startswith("common cause")]


# --- the gateway ------------------------------------------------------------------------------------------------------


def test_an_nginx_whose_master_is_killed_is_started_again(host: Daemon) -> None:
    pid_file = host.nginx / "nginx.pid"
    master = process.read_pid(pid_file)
    assert master is not None
    with pressure(host.gateway) as load:
        os.kill(master, signal.SIGKILL)
        host.wait_for(lambda _: process.read_pid(pid_file) not in (None, master), "another master")
        host.wait_until_green()
        load.wait_for_more(0.5)
    assert host.post().status_code == 200
    # Its workers serve on, but hold the port: a new master has to wait until they have let go, some 50 ms.
    assert {failure.outcome for failure in load.result.failures} <= {"refused"}
    assert len(load.result.failures) < 10


# --- what happened ----------------------------------------------------------------------------------------------------


def test_explain_tells_the_story_of_a_killed_instance(host: Daemon) -> None:
    os.kill(host.instance(ONE)["pid"], signal.SIGKILL)
    host.wait_for(lambda status: one(status, ONE)["last_failure"] is not None, "its failure is known")
    host.wait_until_green()
    told = host.hactl("explain", ONE)
    assert told.code == 0
    assert told.out.splitlines()[0].startswith(f"GREEN {ONE}: serving for ")
    for words in ("verdict serving", "killed by signal 9", "last failure", "in the gateway", "evidence:", "history:"):
        assert words in told.out
    assert f"127.0.0.1:{host.instance(ONE)['endpoint'].rpartition(':')[2]}" in told.out


def test_the_history_names_who_asked(host: Daemon) -> None:
    assert host.hactl("restart", TWO).code == 0
    asked = next(entry for entry in reversed(host.history()) if entry["event"] == "restart")
    assert (asked["subject"], asked["by"]) == (TWO, MYSELF)
    shown = host.hactl("history", "--since", "1m")
    assert shown.code == 0
    assert MYSELF in shown.out


# --- exit codes -------------------------------------------------------------------------------------------------------


def test_what_is_done_exits_0_in_tables_and_in_json(host: Daemon) -> None:
    assert host.hactl("check").code == 0
    assert host.hactl("status").code == 0
    assert host.hactl("status", "--json").document["serving"] == 2
    assert host.hactl("status", TWO, "--json").document["instances"][0]["name"] == TWO
    for command in (
        ["version"],
        ["operations"],
        ["nginx", "show"],
        ["nginx", "test"],
        ["config", "show"],
        ["logs", ONE],
    ):
        assert host.hactl(*command).code == 0, command
    assert "serving" in host.hactl("nginx", "reload").err + host.hactl("status").out


def test_what_cannot_be_understood_exits_2(host: Daemon) -> None:
    assert host.hactl("scale", "many").code == 2
    assert host.hactl("restart").code == 2
    assert host.hactl("no-such-command").code == 2


def test_a_daemon_that_is_not_there_exits_3(host: Daemon) -> None:
    host.stop()
    try:
        gone = host.hactl("status")
        check = host.hactl("check")
    finally:
        host.start()
    assert (gone.code, check.code) == (3, 3)
    assert str(host.socket) in gone.err


def test_who_may_not_use_the_socket_exits_4(host: Daemon) -> None:
    os.chown(host.socket, 65534, 65534)
    try:  # root without the right to pass over permissions is as good as anybody
        command = [str(BIN / "chatglm-hactl"), "--socket", str(host.socket), "status"]
        denied = run(["setpriv", "--bounding-set=-dac_override", *command])
    finally:
        os.chown(host.socket, os.geteuid(), os.getegid())
    assert denied.code == 4
    assert "permission denied" in denied.err.lower()


def test_what_is_out_of_bounds_or_would_end_the_service_exits_5(host: Daemon) -> None:
    far = host.hactl("scale", "7")
    assert far.code == 5
    assert "service.max = 6" in far.err
    assert "chatglm-hactl scale 7 --force" in far.err
    assert host.hactl("scale", "0").code == 5
    assert host.hactl("scale", "7", "--dry-run").code == 5
    assert host.hactl("drain", TWO).code == 0
    last = host.hactl("drain", ONE)
    assert (last.code, "is the only one that serves" in last.err) == (5, True)
    assert host.hactl("restart", ONE).code == 5
    assert host.hactl("undrain", TWO).code == 0


def test_the_one_with_the_least_to_do_goes_and_a_dry_run_names_it(host: Daemon) -> None:
    busy = f"http://{host.instance(TWO)['endpoint']}/"
    with ThreadPoolExecutor(4) as people:
        asked = [people.submit(httpx.post, busy, json={"prompt": "sleep 6"}, timeout=30.0) for _ in range(4)]
        plan = host.wait_for(lambda _: ONE in (said := host.hactl("scale", "1", "--dry-run").out) and said, "ONE goes")
        assert TWO not in plan
        assert host.hactl("scale", "1").code == 0
        assert [instance["name"] for instance in host.status()["instances"]] == [TWO]
    assert [answer.result().status_code for answer in asked] == [200] * 4


def test_what_does_not_exist_exits_6(host: Daemon) -> None:
    for command in (
        ["status", "chatglm-77"],
        ["explain", "chatglm-77"],
        ["restart", "chatglm-77"],
        ["operations", "op-0"],
    ):
        assert host.hactl(*command).code == 6, command
    assert host.hactl("logs", "chatglm-77").code == 6


def test_a_wait_that_runs_out_exits_7_and_the_operation_goes_on(host: Daemon) -> None:
    impatient = host.hactl("scale", "4", "--timeout", "0.05")
    assert impatient.code == 7
    host.wait_until_green(4)
    assert host.hactl("scale", "2").code == 0


def test_an_operation_that_fails_exits_1(host: Daemon) -> None:
    before = restarts(host.status())
    command = host.config["process"]["command"]
    host.configure({"process": {"command": ["{python}", "-c", "raise SystemExit('no model here')"]}})
    assert host.hactl("config", "reload").code == 0
    failed = host.hactl("restart", TWO)
    host.configure({"process": {"command": command}})
    assert host.hactl("config", "reload").code == 0
    assert failed.code == 1
    assert "0 of 1 restarted; stopped at chatglm-02" in failed.err
    host.wait_until_green()
    assert restarts(host.status())[TWO] > before[TWO]
