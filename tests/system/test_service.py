"""The systemd unit on a real systemd: started, hung, killed, reloaded, stopped and booted, with users all the while."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.system.conftest import REMOVE, START, install
from tests.system.hosting import (
    CHECKOUT,
    CONFIG,
    PROCESSES,
    RATE,
    SETTINGS,
    UNIT,
    lives,
    told,
    until,
    until_another_daemon,
    until_green,
    users,
)
from tests.system.machine import Machine

pytestmark = pytest.mark.timeout(900)  # the first run fetches Debian and the packages

OWN = '[nginx]\nmode = "own"\nlisten = "9090"\ndir = "/var/lib/chatglm-ha/own-nginx"\n'
DEFECT = re.compile(r"\bBUG\b|Traceback \(most recent call last\)")


@pytest.fixture
def served(host: Machine) -> Machine:
    """The host with its daemon running as the settings say, and two instances serving."""
    host.put(CONFIG, SETTINGS)
    host.run("systemctl", "start", UNIT)
    until_green(host)
    return host


@pytest.fixture(autouse=True)
def no_defects(host: Machine) -> Iterator[None]:
    """Fails the test in which the daemon logged a defect."""
    yield
    host.run("journalctl", "--sync")
    said = [str(line.get("MESSAGE")) for line in host.journal(UNIT)]
    found = [words for words in said if DEFECT.search(words)]
    assert not found, found


# --- the tests --------------------------------------------------------------------------------------------------------


def test_the_unit_has_nothing_that_systemd_complains_of(host: Machine) -> None:
    assert host.run("systemd-analyze", "verify", f"/usr/lib/systemd/system/{UNIT}.service") == ""
    assert host.shown(UNIT, "LoadState") == "loaded"


def test_the_commands_of_the_readme_start_the_service(host: Machine) -> None:
    host.put(CONFIG, SETTINGS)
    said = host.run("bash", "-eu", "-c", START)
    assert f"{CONFIG}: ok" in said
    assert "chatglm on gpu-host" in said
    assert host.shown(UNIT, "UnitFileState") == "enabled"
    until_green(host)


def test_the_unit_is_active_only_when_the_daemon_has_asked_every_instance(served: Machine) -> None:
    for instance in served.document("status")["instances"]:
        answer_slowly = json.dumps({"mode": "slow", "health_s": 0.7, "service_s": 0.05, "for_s": 20})
        ask = f"urlopen('http://{instance['endpoint']}/standin', {answer_slowly.encode()!r}, 5).read()"
        served.run("python3", "-c", f"from urllib.request import urlopen; {ask}")
    served.run("systemctl", "restart", UNIT)
    status = served.document("status")
    assert status["settled"] is True
    assert status["serving"] == 2
    served.run("journalctl", "--sync")
    at = {str(line["MESSAGE"]): int(line["__REALTIME_TIMESTAMP"]) / 1e6 for line in served.journal(UNIT)}
    began = max(time for words, time in at.items() if "begins" in words)
    active = max(time for words, time in at.items() if words.startswith("Started "))
    assert active - began >= 0.7, "it did not wait for the answers"


def test_systemctl_status_shows_the_summary(served: Machine) -> None:
    until(lambda: served.shown(UNIT, "StatusText") == "2 of 2 serving", "the summary")
    assert 'Status: "2 of 2 serving"' in served.run("systemctl", "status", "--no-pager", UNIT)


def test_a_daemon_that_hangs_is_restarted_by_the_watchdog_and_no_user_notices(served: Machine) -> None:
    drop_in = f"/etc/systemd/system/{UNIT}.service.d"
    served.run("mkdir", "-p", drop_in)
    served.put(f"{drop_in}/watchdog.conf", "[Service]\nWatchdogSec=5s\n")  # 30 s in the unit; nothing else is changed
    served.run("systemctl", "daemon-reload")
    served.run("systemctl", "restart", UNIT)
    try:
        until_green(served)
        before, pid = lives(served), served.main_pid(UNIT)
        with users(served) as seen:
            served.signal(pid, "STOP")
            until_another_daemon(served, pid)
            until_green(served)
        assert any("Watchdog timeout" in line for line in told(served, "Watchdog timeout"))
        assert lives(served) == before
        assert seen.failures == [], str(seen)
        assert seen.sent > 3 * RATE
    finally:
        served.run("rm", "-r", drop_in)
        served.run("systemctl", "daemon-reload")
        served.run("systemctl", "restart", UNIT)


def test_the_daemon_keeps_feeding_the_watchdog_while_it_works(served: Machine) -> None:
    def fed() -> int:
        return int(served.shown(UNIT, "WatchdogTimestampMonotonic"))

    assert served.shown(UNIT, "WatchdogUSec") == "30s"
    first = fed()
    until(lambda: fed() > first, "the next feeding")


def test_a_killed_daemon_is_restarted_and_neither_instances_nor_users_notice(served: Machine) -> None:
    before, pid, status = lives(served), served.main_pid(UNIT), served.document("status")
    with users(served) as seen:
        served.signal(pid, "KILL")
        until_another_daemon(served, pid)
        after = until_green(served)
    assert lives(served) == before
    assert after["nginx"]["generation"] == status["nginx"]["generation"], "nginx was reloaded for nothing"
    assert after["desired"] == status["desired"]
    assert seen.failures == [], str(seen)


def test_a_reload_with_a_mistake_fails_with_its_line_and_changes_nothing(served: Machine) -> None:
    before, pid, shown = lives(served), served.main_pid(UNIT), served.document("config", "show")
    served.put(CONFIG, SETTINGS + "hang_aftr = 30.0\n")
    ran = served.ask("systemctl", "reload", UNIT)
    assert ran.code != 0
    line = len(SETTINGS.splitlines()) + 1
    wanted = f"{CONFIG}:{line}: health.hang_aftr: unknown key; did you mean hang_after?"
    assert any(wanted in words for words in told(served, "Reloading "))
    assert wanted in served.ask("systemctl", "status", "--no-pager", "--full", UNIT).output
    assert served.shown(UNIT, "ActiveState") == "active"
    assert served.main_pid(UNIT) == pid
    assert served.document("config", "show") == shown
    assert lives(served) == before


def test_a_reload_takes_a_good_file_over_without_a_restart_of_anything(served: Machine) -> None:
    before, pid = lives(served), served.main_pid(UNIT)
    served.put(CONFIG, SETTINGS.replace("interval = 0.5", "interval = 0.7"))
    served.run("systemctl", "reload", UNIT)
    assert served.document("config", "show")["config"]["health"]["interval"] == 0.7
    assert "health.interval: 0.5 -> 0.7" in told(served, "Reloading ")
    assert served.main_pid(UNIT) == pid
    assert lives(served) == before
    served.put(CONFIG, SETTINGS)
    served.run("systemctl", "reload", UNIT)


def test_a_stop_leaves_instances_and_nginx_serving_and_the_next_start_takes_them_over(served: Machine) -> None:
    before, generation = lives(served), served.document("status")["nginx"]["generation"]
    with users(served) as seen:
        served.run("systemctl", "stop", UNIT)
        assert served.shown(UNIT, "ActiveState") == "inactive"
        assert served.ask("chatglm-hactl", "status").code == 3
        answered = seen_from(served)
        assert answered == {"status": "healthy", "serving": 2, "daemon": "not answering"}
        served.run("systemctl", "start", UNIT)
        after = until_green(served)
    assert lives(served) == before
    assert after["nginx"]["generation"] == generation, "nginx was reloaded for nothing"
    assert seen.failures == [], str(seen)


def seen_from(host: Machine, port: int = 80) -> dict[str, Any]:
    """What the gateway's /health says."""
    ask = (
        f"from urllib.request import urlopen; print(urlopen('http://127.0.0.1:{port}/health', None, 5).read().decode())"
    )
    found: dict[str, Any] = json.loads(host.run("python3", "-c", ask))
    return found


def test_a_mistake_in_the_file_fails_the_start_with_its_line_and_is_not_tried_again(served: Machine) -> None:
    served.run("systemctl", "stop", UNIT)
    served.put(CONFIG, "[service]\nmin = 4\nmax = 3\n")
    assert served.ask("systemctl", "start", UNIT).code != 0
    assert served.shown(UNIT, "ActiveState") == "failed"
    assert served.shown(UNIT, "ExecMainStatus") == "2"
    assert any(f"{CONFIG}:3: service.max: 3 is below service.min = 4" in line for line in told(served, "Starting "))
    served.put(CONFIG, SETTINGS)
    served.run("systemctl", "start", UNIT)
    until_green(served)


def test_the_nginx_that_the_daemon_runs_itself_outlives_a_stop_of_the_unit(served: Machine) -> None:
    served.run("systemctl", "stop", UNIT)
    served.put(CONFIG, SETTINGS + OWN)
    served.run("systemctl", "start", UNIT)
    until_green(served)
    pid_file = "/var/lib/chatglm-ha/own-nginx/nginx.pid"
    master = int(served.run("cat", pid_file))
    try:
        before = lives(served)
        with users(served, port=9090) as seen:
            served.run("systemctl", "stop", UNIT)
            assert seen_from(served, 9090)["serving"] == 2
            served.run("systemctl", "start", UNIT)
            until_green(served)
        assert int(served.run("cat", pid_file)) == master
        assert lives(served) == before
        assert seen.failures == [], str(seen)
    finally:
        served.run("systemctl", "stop", UNIT)
        served.signal(master, "QUIT")


def test_those_in_the_group_may_command_and_are_named_in_the_history(served: Machine) -> None:
    served.run("useradd", "--groups", "chatglm-ha", "alice")
    served.run("useradd", "bob")
    try:
        refused = served.ask("runuser", "-u", "bob", "--", "chatglm-hactl", "pause")
        assert refused.code == 4
        assert "bob is not in its group chatglm-ha" in refused.output
        served.run("runuser", "-u", "alice", "--", "chatglm-hactl", "pause", "--for", "60s", "--reason", "drill")
        assert served.document("status")["paused"]["by"].startswith("alice (uid ")
        served.run("chatglm-hactl", "resume")
    finally:
        served.run("userdel", "alice")
        served.run("userdel", "bob")


def test_a_host_that_boots_serves_again_by_itself(served: Machine) -> None:
    before = {instance["name"] for instance in served.document("status")["instances"]}
    served.run("systemctl", "enable", UNIT)
    served.reboot()
    status = until_green(served)
    assert {i["name"] for i in status["instances"]} == before
    with users(served) as seen:
        until(lambda: all(i["qps"] for i in served.document("status")["instances"]), "answers of both")
    assert seen.failures == [], str(seen)


def test_after_a_boot_nobody_is_routed_before_the_daemon_has_proven_somebody(served: Machine) -> None:
    served.run("systemctl", "disable", UNIT)
    upstream = "/var/lib/chatglm-ha/nginx/upstream.conf"
    assert re.search(r"server 127\.0\.0\.1:80\d\d max_fails", served.run("cat", upstream))
    served.reboot()
    assert served.shown("nginx", "ActiveState") == "active"
    told = httpx.post(f"http://{served.address}/", json={"prompt": "secret"}, timeout=20.0)
    assert told.status_code == 503
    assert not re.search(r"server 127\.0\.0\.1:80\d\d max_fails", served.run("cat", upstream))
    served.run("systemctl", "start", UNIT)
    until_green(served)
    assert httpx.post(f"http://{served.address}/", json={"prompt": "hi"}, timeout=20.0).status_code == 200


def test_the_commands_of_the_readme_remove_it_without_a_trace(served: Machine) -> None:
    assert "keeper.py" in served.run("bash", "-c", PROCESSES)
    served.run("bash", "-eu", "-c", f"cd {CHECKOUT}\n{REMOVE}")
    assert served.shown(UNIT, "LoadState") == "not-found"
    elsewhere = ["-not", "-path", "/srv/*", "-not", "-path", "/root/.cache/pip/*"]  # the checkout, and pip's cache
    assert served.run("find", "/", "-xdev", *elsewhere, "-name", "*chatglm*") == ""
    running = served.run("bash", "-c", PROCESSES)
    assert "chatglm" not in running
    assert "nginx: master" in running
    assert "test is successful" in served.run("nginx", "-t")
    install(served)
