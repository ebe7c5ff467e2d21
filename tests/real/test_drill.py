"""`chatglm-hactl drill` on a real host: what its table says of each fault, what is refused, and what is left behind."""

from __future__ import annotations

import json
import os
import pwd
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.real.daemon import PATIENT, Daemon, Document, as_processes, daemon, on_docker, one
from tests.real.dockerd import Engine
from tests.real.restarter import Restarter, restarted

MYSELF = f"{pwd.getpwuid(os.geteuid()).pw_name} (uid {os.geteuid()})"
ONE, TWO = "chatglm-01", "chatglm-02"
RATE = 20.0
SOON = {"health": {"hang_after": 20.0, "inference_timeout": 5.0}}


@pytest.fixture(scope="module")
def machine(standin_server: Path, port_range: Callable[[int], range]) -> Iterator[tuple[Daemon, Restarter]]:
    """A daemon with two instances that offer the hook, under somebody who starts it again."""
    with (
        daemon(port_range(20), PATIENT, as_processes(standin_server, {"DRILL": "1"}), SOON) as host,
        restarted(host) as restarter,
    ):
        yield host, restarter


@pytest.fixture
def host(machine: tuple[Daemon, Restarter]) -> Iterator[Daemon]:
    """The module's daemon with two instances that serve, no failure of which counts any more."""
    host = machine[0]
    for name in (ONE, TWO):
        if host.wait_until_green() and host.instance(name)["attempts"]["failed"]:
            assert host.hactl("restart", name).code == 0  # by hand: earlier failures do not hold it back
    host.wait_until_green()
    yield host
    host.assert_no_defects()


def drill(host: Daemon, *arguments: str) -> Document:
    """Carries a drill out by the tool; its document, once it has ended as promised."""
    ran = host.hactl("drill", *arguments, "--yes", "--json", "--rate", str(RATE))
    assert ran.code == 0, f"{ran.out}\n{ran.err}\n{host.log()[-3000:]}"
    assert ran.document["state"] == "done"
    return ran.document


def nobody_failed(document: Document) -> bool:
    load = document["load"]
    assert (load["failed"], load["failures"], document["findings"]) == (0, [], [])
    assert load["sent"] == load["answered"] > RATE  # a second before the fault, and some after it
    assert 0 < load["slowest_s"] < load["patience_s"]
    return True


def told_in_history(host: Daemon, document: Document, subject: str) -> list[str]:
    """What the history says of a drill, and by whom it was begun."""
    name = document["id"]
    ended = f"{name} {document['state']}"
    host.wait_for(lambda _: any(entry["sentence"].startswith(ended) for entry in host.history()), "its end is noted")
    lines = [entry for entry in host.history() if entry["event"] == "drill" and name in entry["sentence"]]
    assert {entry["subject"] for entry in lines} == {subject}
    assert lines[0]["by"] == document["by"] == MYSELF
    return [entry["sentence"] for entry in lines]


def state_of(pid: int) -> str:
    return str(psutil.Process(pid).status())


def processes_of_drills() -> set[int]:
    return {
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if "hasupervisor.drill" in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    }


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No process of a drill outlives its test."""
    before = processes_of_drills()
    yield
    left = [psutil.Process(pid) for pid in processes_of_drills() - before]
    _, alive = psutil.wait_procs(left, 10.0)
    assert alive == []


# --- each fault -------------------------------------------------------------------------------------------------------


def test_a_killed_instance_costs_no_request_and_the_table_says_when_it_was_out_and_back(host: Daemon) -> None:
    before = host.instance(TWO)
    document = drill(host, "kill", TWO)
    assert nobody_failed(document)
    until = document["until"]
    assert until["out_of_rotation_s"] > 0
    assert until["fenced_s"] is None
    assert until["serving_again_s"] > 0
    after = host.instance(TWO)
    assert (after["pid"] != before["pid"], after["restarts"]) == (True, before["restarts"] + 1)
    begun, ended = told_in_history(host, document, TWO)
    assert begun.startswith(f"{document['id']} begins: SIGKILL to {TWO} (pid {before['pid']}): ")
    assert "0 failed" in ended
    assert [entry for entry in document["history"] if entry["event"] == "routing" and entry["subject"] == TWO]


def test_a_hung_instance_is_fenced_and_costs_no_request(host: Daemon) -> None:
    before = host.instance(ONE)
    document = drill(host, "hang", ONE)
    assert nobody_failed(document)
    until = document["until"]
    assert until["out_of_rotation_s"] > 0
    assert 0 < until["fenced_s"] < until["serving_again_s"]
    assert host.instance(ONE)["pid"] != before["pid"]
    assert told_in_history(host, document, ONE)


def test_an_instance_that_answers_errors_is_restarted_and_costs_no_request(host: Daemon) -> None:
    before = host.instance(TWO)
    document = drill(host, "sick", TWO)
    assert nobody_failed(document)
    until = document["until"]
    assert 0 < until["out_of_rotation_s"] < until["serving_again_s"]
    assert until["fenced_s"] is not None
    assert host.instance(TWO)["pid"] != before["pid"]


def test_a_slow_instance_is_never_restarted_and_runs_freely_afterwards(host: Daemon) -> None:
    before = host.status()
    document = drill(host, "slow", TWO, "--seconds", "3")
    assert nobody_failed(document)
    assert document["until"]["fenced_s"] is None
    after = host.wait_until_green()
    assert [i["pid"] for i in after["instances"]] == [i["pid"] for i in before["instances"]]
    assert state_of(one(after, TWO)["pid"]) != psutil.STATUS_STOPPED


def test_a_spike_restarts_nobody_and_takes_nobody_out(host: Daemon) -> None:
    before = host.status()
    document = drill(host, "spike", "--seconds", "3")
    assert nobody_failed(document)
    assert document["load"]["sent"] > 3 * 2.5 * RATE  # three seconds at three times the rate, and some before it
    assert document["until"] == {"out_of_rotation_s": None, "fenced_s": None, "serving_again_s": None}
    assert [i["pid"] for i in host.status()["instances"]] == [i["pid"] for i in before["instances"]]
    assert told_in_history(host, document, "service")


def test_a_killed_gateway_answers_again_and_loses_nothing_that_it_had_taken(host: Daemon) -> None:
    before = host.status()
    document = drill(host, "gateway")
    load = document["load"]
    # Between the end of the old workers and the new master nobody listens: a moment in which one can only be refused.
    assert [failure["what"] for failure in load["failures"]] in ([], ["cannot connect to the gateway"])
    assert load["sent"] == load["answered"] + load["failed"]
    assert document["until"]["serving_again_s"] > 0
    assert document["until"]["fenced_s"] is None
    assert [i["pid"] for i in host.status()["instances"]] == [i["pid"] for i in before["instances"]]
    assert told_in_history(host, document, "nginx")


def test_a_killed_daemon_costs_no_request_and_the_drill_goes_on_under_its_successor(
    machine: tuple[Daemon, Restarter], host: Daemon
) -> None:
    restarter, before, pid = machine[1], host.status(), host.pid
    starts = restarter.restarts
    document = drill(host, "daemon")
    assert nobody_failed(document)
    assert (restarter.restarts, host.pid != pid) == (starts + 1, True)
    until = document["until"]
    assert (until["out_of_rotation_s"], until["fenced_s"]) == (None, None)
    assert until["serving_again_s"] > 0
    assert [i["pid"] for i in host.wait_until_green()["instances"]] == [i["pid"] for i in before["instances"]]
    assert told_in_history(host, document, "daemon")
    shown = host.hactl("drill", document["id"], "--json")
    assert (shown.code, shown.document) == (0, document)


# --- nothing is left behind -------------------------------------------------------------------------------------------


@contextmanager
def held(host: Daemon, name: str, seconds: str = "60") -> Iterator[tuple[str, int]]:
    """A drill that has stopped an instance; nobody fences it, as healing is paused. Its id, and whom it has stopped."""
    assert host.hactl("pause", "--reason", "a drill of drills").code == 0
    pid = host.instance(name)["pid"]
    try:
        begun = host.hactl("drill", "hang", name, "--seconds", seconds, "--force", "--yes", "--no-wait")
        assert begun.code == 0, begun.err
        drill_id = begun.out.strip()
        host.wait_for(lambda _: state_of(pid) == psutil.STATUS_STOPPED, "is stopped")
        told = [problem for problem in host.status()["problems"] if problem["subject"] == "drill"]
        assert [problem["hint"] for problem in told] == [f"chatglm-hactl drill {drill_id}"]
        assert told[0]["sentence"] == f"{drill_id} is under way: hang of {name}, by {MYSELF}"
        yield drill_id, pid
        host.wait_for(lambda _: state_of(pid) != psutil.STATUS_STOPPED, "goes on")
    finally:
        assert host.hactl("resume").code == 0
    assert host.wait_until_green()
    assert host.instance(name)["pid"] == pid  # it was let go on, not replaced


def sheet_of(host: Daemon, drill_id: str) -> Document:
    """The file itself, with what only the daemon and the drill are to know."""
    found: Document = json.loads((host.folder / "state" / "drills" / f"{drill_id}.json").read_text())
    return found


def has_ended(host: Daemon, drill_id: str) -> Document:
    """The document of a drill once it is over."""

    def ended(_: Document) -> Document | None:
        shown = host.hactl("drill", drill_id, "--json", "--no-wait").document
        return shown if shown["state"] != "running" else None

    return host.wait_for(ended, f"{drill_id} has ended")


def guardian_of(drill_pid: int) -> int:
    (child,) = psutil.Process(drill_pid).children()
    return child.pid


def test_an_instance_that_is_not_fenced_goes_on_at_the_end_and_comes_back(host: Daemon) -> None:
    with held(host, TWO, seconds="10") as (drill_id, _):
        assert host.hactl("drill", drill_id).code == 0  # follows it to its end
    document = has_ended(host, drill_id)
    assert nobody_failed(document)
    assert document["until"]["out_of_rotation_s"] < document["until"]["serving_again_s"]
    assert document["until"]["fenced_s"] is None
    begun = told_in_history(host, document, TWO)[0]
    assert f"{drill_id} begins: forced although healing is paused by " in begun


def test_a_drill_that_is_called_off_undoes_its_fault(host: Daemon) -> None:
    with held(host, TWO) as (drill_id, _):
        called_off = host.hactl("drill", drill_id, "--cancel", "--json")
        assert (called_off.code, called_off.document["state"]) == (0, "cancelled")
    assert any("is called off" in sentence for sentence in told_in_history(host, called_off.document, TWO))
    assert host.hactl("drill", drill_id, "--cancel").code == 5


def test_a_drill_that_is_killed_lets_its_instance_go_on(host: Daemon) -> None:
    with held(host, TWO) as (drill_id, _):
        os.kill(sheet_of(host, drill_id)["process"]["pid"], signal.SIGKILL)
    document = has_ended(host, drill_id)
    assert (document["state"], document["sentence"]) == ("failed", "the drill's own process was ended from outside")
    assert told_in_history(host, document, TWO)


def test_a_drill_whose_guardian_is_killed_lets_its_instance_go_on_by_itself(host: Daemon) -> None:
    with held(host, TWO) as (drill_id, _):
        os.kill(guardian_of(sheet_of(host, drill_id)["process"]["pid"]), signal.SIGKILL)
    document = has_ended(host, drill_id)
    assert document["state"] == "failed"
    assert "guardian" in document["sentence"]


@pytest.mark.parametrize("daemon_too", [False, True], ids=["the daemon", "the next daemon"])
def test_the_daemon_lets_an_instance_go_on_when_drill_and_guardian_are_killed(host: Daemon, daemon_too: bool) -> None:
    with held(host, TWO) as (drill_id, pid):
        process, supervisor = sheet_of(host, drill_id)["process"]["pid"], host.pid
        guardian = guardian_of(process)
        if daemon_too:
            os.kill(supervisor, signal.SIGSTOP)
        os.kill(guardian, signal.SIGSTOP)  # so that it cannot do it when the other one goes
        os.kill(process, signal.SIGKILL)
        os.kill(guardian, signal.SIGKILL)
        if daemon_too:
            assert state_of(pid) == psutil.STATUS_STOPPED
            os.kill(supervisor, signal.SIGKILL)
    assert has_ended(host, drill_id)["state"] == "failed"


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_drill_that_could_hurt_is_refused_with_every_reason(host: Daemon) -> None:
    assert host.hactl("drain", TWO).code == 0
    try:
        plan = host.hactl("drill", "kill", ONE, "--dry-run")
        asked = host.hactl("drill", "kill", ONE, "--yes")
    finally:
        assert host.hactl("undrain", TWO).code == 0
    assert plan.code == asked.code == 5
    for said in (plan.err, asked.err):
        assert "1 of 2 serve; at least 2 have to" in said
        assert f"{TWO} is parked: drained by hand" in said
        assert said.endswith(f"next: chatglm-hactl drill kill {ONE} --force\n")
    assert plan.out.startswith(f"SIGKILL to {ONE} (pid ")


def test_there_is_one_drill_at_a_time(host: Daemon) -> None:
    begun = host.hactl("drill", "spike", "--seconds", "30", "--rate", "1", "--yes", "--no-wait")
    assert begun.code == 0
    refused = host.hactl("drill", "kill", "--yes", "--force")
    called_off = host.hactl("drill", begun.out.strip(), "--cancel")
    assert (refused.code, called_off.code) == (5, 0)
    assert f"{begun.out.strip()} is under way: spike by " in refused.err


def test_an_instance_that_is_not_there_is_named_with_what_there_is(host: Daemon) -> None:
    ran = host.hactl("drill", "kill", "chatglm-9", "--yes")
    assert ran.code == 6
    assert ran.err.startswith(f"chatglm-hactl: there is no instance chatglm-9; there are {ONE}, {TWO}")


def test_alone_in_the_foreground_the_daemon_is_not_killed_and_a_server_without_the_hook_is_not_made_sick(
    standin_server: Path, port_range: Callable[[int], range]
) -> None:
    with daemon(port_range(20), PATIENT, as_processes(standin_server)) as alone:
        alone.start()
        alone.wait_until_green()
        killed = alone.hactl("drill", "daemon", "--yes")
        sick = alone.hactl("drill", "sick", ONE, "--yes", "--force")
        assert alone.hactl("drill").err.startswith("there has been no drill yet")
    assert (killed.code, sick.code) == (5, 5)
    assert "nobody is seen who would start the daemon again" in killed.err
    assert f"{ONE} cannot be made sick: " in sick.err
    assert "it answered 404 to GET /drill" in sick.err


def test_containers_are_drilled_by_the_pids_that_they_have_on_the_host(
    engine: Engine, standin_image: str, port_range: Callable[[int], range]
) -> None:
    try:
        with daemon(port_range(20), PATIENT, on_docker(engine, standin_image)) as contained:
            contained.start()
            before = contained.wait_until_green(within=90.0)
            hung, killed = drill(contained, "hang", ONE), drill(contained, "kill", TWO)
            after = contained.wait_until_green()
    finally:
        engine.remove_everything()
    assert nobody_failed(hung)
    assert nobody_failed(killed)
    assert 0 < hung["until"]["fenced_s"] < hung["until"]["serving_again_s"]
    assert [one(after, name)["restarts"] for name in (ONE, TWO)] == [1, 1]
    assert one(after, ONE)["runtime_id"] != one(before, ONE)["runtime_id"]
