"""One bad thing is that thing's problem: a record, a port, a setting that is reloaded; all else goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.real.daemon import PATIENT, Daemon, Document, as_processes, daemon, one
from tests.real.pressure import pressure


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


def port_of(instance: Document) -> int:
    return int(instance["endpoint"].rpartition(":")[2])


@contextmanager
def stranger_on(port: int) -> Iterator[None]:
    """Somebody else listens there meanwhile."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield


# --- a record ---------------------------------------------------------------------------------------------------------


def test_a_damaged_record_costs_neither_its_own_instance_nor_the_healing_of_the_others(host: Daemon) -> None:
    spared, victim = host.instance("chatglm-02"), host.instance("chatglm-01")
    record = host.folder / "state" / "run" / "chatglm-02.json"
    record.write_text(record.read_text()[:50])
    killed = time.monotonic()
    os.kill(victim["pid"], signal.SIGKILL)
    host.wait_for(lambda s: one(s, "chatglm-01")["restarts"] > victim["restarts"] and s["serving"] == 2, "is healed")
    assert time.monotonic() - killed < 8.0
    after = host.instance("chatglm-02")
    assert (after["pid"], after["restarts"], after["routed"]) == (spared["pid"], spared["restarts"], True)
    told = [entry["sentence"] for entry in host.history() if entry["event"] == "record"]
    assert f"written anew from its process, pid {spared['pid']}" in told[-1]


def test_a_daemon_whose_state_is_lost_takes_over_the_processes_that_run(host: Daemon) -> None:
    before = {i["name"]: i["runtime_id"] for i in host.status()["instances"]}
    host.stop()
    shutil.rmtree(host.folder / "state")
    host.start()
    after = host.wait_until_green()
    assert {i["name"]: i["runtime_id"] for i in after["instances"]} == before
    assert [i["restarts"] for i in after["instances"]] == [0, 0]


def test_a_file_that_is_no_record_is_a_problem_of_its_own_in_status(host: Daemon) -> None:
    stray = host.folder / "state" / "run" / "notes.json"
    host.kill()
    stray.write_text("remember the milk")
    host.start()
    try:
        problem = host.wait_for(
            lambda s: next((p for p in s["problems"] if str(stray) in p["sentence"]), None), "tells of it"
        )
        assert problem["hint"].startswith(f"mv {stray} ")
        assert host.status()["serving"] == 2
    finally:
        host.kill()
        stray.unlink()
        host.start()
    host.wait_until_green()


# --- a port -----------------------------------------------------------------------------------------------------------


def test_an_instance_whose_port_somebody_else_has_is_started_on_the_next_one_under_its_name(host: Daemon) -> None:
    before = host.instance("chatglm-02")
    assert host.hactl("drain", "chatglm-02").code == 0
    with stranger_on(port_of(before)):
        undrained = host.hactl("undrain", "chatglm-02")
        assert undrained.code == 0, undrained.err
        host.wait_until_green()
        after = host.instance("chatglm-02")
        assert port_of(after) != port_of(before)
        assert after["attempts"]["failed"] == 0
        (told,) = (entry for entry in host.history() if entry["event"] == "port")
        assert told["subject"] == "chatglm-02"
        assert told["sentence"].startswith(f"port {port_of(before)} on 127.0.0.1 is taken by something else")
        assert told["sentence"].endswith(f"it is started on port {port_of(after)} instead")


# --- a setting --------------------------------------------------------------------------------------------------------


def test_an_address_that_is_reloaded_is_for_new_instances_alone_and_no_request_is_lost(host: Daemon) -> None:
    before = {i["name"]: (i["endpoint"], i["pid"]) for i in host.status()["instances"]}
    with pressure(host.gateway) as load:
        host.configure({"service": {"bind": "127.0.0.2"}})
        assert host.hactl("config", "reload").code == 0
        added = host.hactl("scale", "3")
        assert added.code == 0, added.err
        victim = host.instance("chatglm-01")
        os.kill(victim["pid"], signal.SIGKILL)  # the list is made anew, and this one is new then
        host.wait_for(lambda s: one(s, "chatglm-01")["restarts"] > victim["restarts"] and s["serving"] == 3, "is back")
        host.kill()
        host.start()
        host.wait_until_green(3)
        load.wait_for_more(1.0)
    after = {i["name"]: (i["endpoint"], i["pid"]) for i in host.status()["instances"]}
    assert after["chatglm-02"] == before["chatglm-02"]
    assert after["chatglm-01"][0].startswith("127.0.0.2:")
    assert after["chatglm-03"][0].startswith("127.0.0.2:")
    assert load.result.failures == []
    host.configure({"service": {"bind": "127.0.0.1"}})
    assert host.hactl("config", "reload").code == 0


def test_a_reload_is_applied_though_the_log_file_could_not_be_opened_now(
    standin_server: Path, port_range: Callable[[int], range]
) -> None:
    with daemon(port_range(20), PATIENT, as_processes(standin_server)) as host:
        folder = host.folder / "log"
        folder.mkdir()
        host.configure({"log": {"file": str(folder / "had.log")}})
        host.start()
        host.wait_until_green()
        shutil.rmtree(folder)
        host.configure({"drain": {"timeout": 7.0}})
        told = host.hactl("config", "reload")
        assert (told.code, told.out.strip()) == (0, "drain.timeout: 300.0 -> 7.0")


def test_a_key_in_a_command_is_shown_neither_in_status_nor_by_a_reload(host: Daemon) -> None:
    key = "abc-123-def"
    host.configure({"process": {"command": [*host.config["process"]["command"], "--api-key", key]}})  # type: ignore[misc]
    told = host.hactl("config", "reload")
    assert told.code == 0
    assert host.hactl("restart", "chatglm-02").code == 0
    assert host.instance("chatglm-02")["image"].endswith("--api-key '***'")
    shown = host.hactl("config", "show")
    for words in (told.out, shown.out, json.dumps(host.status()), json.dumps(host.history()), host.log()):
        assert key not in words
        assert "--api-key" in words


def test_pages_that_cannot_be_shown_are_a_problem_of_their_own_and_instances_serve(
    standin_server: Path, port_range: Callable[[int], range]
) -> None:
    with daemon(port_range(20), PATIENT, as_processes(standin_server)) as host, stranger_on(host.ports[2]):
        host.start()
        status = host.wait_for(lambda s: s["serving"] == 2 and s, "serves")
        (problem,) = (p for p in status["problems"] if p["subject"] == "pages")
        assert f"http.listen: cannot listen on 127.0.0.1:{host.ports[2]}" in problem["sentence"]
        assert status["health"] == "yellow"
