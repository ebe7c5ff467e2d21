"""A clean host with Debian's dockerd and nginx, from the package on: what a new user does, and what breaks at night."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkout import copy_sources
from tests.real import images
from tests.real.dockerd import Engine
from tests.system import supplies
from tests.system.hosting import CHECKOUT, CONFIG, UNIT, WHEELS, told, until, until_another_daemon, until_green, users
from tests.system.machine import Machine, machine

pytestmark = pytest.mark.timeout(900)  # the first run fetches Debian and the packages

IMAGE = "chatglm-service:v1.1.0"
OFFLINE = f"export PIP_NO_INDEX=1 PIP_FIND_LINKS={WHEELS}; cd {CHECKOUT}\n"
PACKAGE = f"{CHECKOUT}/dist/chatglm-ha_0.1.0_*.deb"
NEXT = "/tmp/next.deb"
BUILD_S = 180.0


def shell(host: Machine, script: str) -> str:
    return host.run("bash", "-eu", "-c", script, within=BUILD_S)


@pytest.fixture(scope="module")
def host(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A booted host with dockerd, an image of a model server, and the project's package, not installed yet."""
    folder = tmp_path_factory.mktemp("containers")
    sources, images_at = folder / "checkout", folder / "images"
    copy_sources(sources)
    images_at.mkdir()
    python = Path(sys.executable).resolve()
    (images_at / "standin.tar").write_bytes(images.archive(python))
    folders = {sources: "/mnt", supplies.dependencies(): WHEELS, images_at: "/srv/images"}
    debian = supplies.root_file_system(also=("docker.io", "iptables"))
    with machine(engine, debian, folders, name="docker-host", volumes=("/var/lib/docker",)) as host:
        changes = " ".join(f"--change '{line}'" for line in images.entry(python, "server.py"))
        shell(host, f"docker import {changes} /srv/images/standin.tar {IMAGE}")
        shell(host, f"rm /etc/nginx/sites-enabled/default; cp -r /mnt {CHECKOUT}\n{OFFLINE}make deb 2>&1")
        yield host


@pytest.fixture(scope="module")
def started(host: Machine) -> Machine:
    """Installed, the image named, started: nothing else was done."""
    shell(host, f"apt-get install -q -y {PACKAGE}")
    shell(host, f"sed -i 's/^image = .*/image = \"{IMAGE}\"/' {CONFIG}")
    host.run("systemctl", "start", UNIT)
    until_green(host)
    return host


def containers(host: Machine) -> list[str]:
    """What must not change: of every instance its container, since when it runs, and how often it was restarted."""
    names = [str(instance["name"]) for instance in host.document("status")["instances"]]
    said = host.run(
        "docker", "inspect", "--format", "{{.Name}} {{.Id}} {{.State.StartedAt}} {{.State.Running}}", *names
    )
    return sorted(said.splitlines())


def refused_lines(host: Machine) -> int:
    """How many lines nginx could not write to the daemon's log socket."""
    return int(host.ask("grep", "-c", "access.sock", "/var/log/nginx/error.log").output or 0)


def test_two_containers_serve_through_the_system_s_nginx_and_nothing_is_to_be_mended(started: Machine) -> None:
    with users(started) as seen:
        until(lambda: all(i["qps"] for i in started.document("status")["instances"]), "answers of both")
        checks = started.document("doctor")["checks"]
    assert seen.failures == [], str(seen)
    assert len(containers(started)) == 2
    assert [check for check in checks if check["level"] == "fail"] == []
    assert any("as whom" in c["sentence"] or "may do what it has to" in c["sentence"] for c in checks)
    until(lambda: started.shown(UNIT, "StatusText") == "2 of 2 serving", "the summary")
    assert 'Status: "2 of 2 serving"' in started.run("systemctl", "status", "--no-pager", UNIT)


def test_the_daemon_is_no_root_and_is_in_the_group_of_dockerd(started: Machine) -> None:
    status = started.run("cat", f"/proc/{started.main_pid(UNIT)}/status")
    values = dict(line.split(":\t", 1) for line in status.splitlines())
    docker = started.run("getent", "group", "docker").split(":")[2]
    assert docker in values["Groups"].split()
    assert "0" not in values["Uid"].split()


def test_a_member_of_the_group_may_ask_and_another_user_exits_4(started: Machine) -> None:
    started.run("useradd", "--groups", UNIT, "alice")
    started.run("useradd", "bob")
    assert "GREEN" in started.run("runuser", "-u", "alice", "--", "chatglm-hactl", "status")
    refused = started.ask("runuser", "-u", "bob", "--", "chatglm-hactl", "status")
    assert refused.code == 4
    assert "sudo usermod -aG chatglm-ha bob" in refused.output


def test_a_killed_daemon_is_back_and_who_asked_meanwhile_is_answered(started: Machine) -> None:
    before, pid, lines = containers(started), started.main_pid(UNIT), refused_lines(started)
    with users(started) as seen:
        said = shell(started, f"kill -KILL {pid}; chatglm-hactl status --json")
        until_another_daemon(started, pid)
        until_green(started)
    assert json.loads(said)["service"] == "chatglm", "asked while there was no daemon"
    assert started.main_pid(UNIT) != pid
    assert seen.failures == [], str(seen)
    assert containers(started) == before
    assert refused_lines(started) == lines, "nginx found nobody to write its log to"


def test_everybody_who_asks_during_a_restart_is_answered(started: Machine) -> None:
    pid = started.main_pid(UNIT)
    asking = "while [ ! -e /tmp/over ]; do chatglm-hactl status >/dev/null || echo failed; echo asked; done"
    said = shell(started, f"({asking}) & systemctl restart {UNIT}; systemctl restart {UNIT}; touch /tmp/over; wait")
    shell(started, "rm /tmp/over")
    until_another_daemon(started, pid)
    # One that was taken by the old daemon while it ended may be cut: that daemon ends its answers first.
    assert "failed" not in said
    assert said.count("asked") >= 2
    until_green(started)


def test_a_reload_with_a_mistake_fails_with_file_and_line(started: Machine) -> None:
    before, good = containers(started), started.run("cat", CONFIG)
    shell(started, f"sed -i 's/^hang_after/hang_aftr/' {CONFIG}")
    line = good.splitlines().index(next(line for line in good.splitlines() if line.startswith("hang_after"))) + 1
    assert started.ask("systemctl", "reload", UNIT).code != 0
    wanted = f"{CONFIG}:{line}: health.hang_aftr: unknown key"
    assert any(wanted in words for words in told(started, "Reloading "))
    shell(started, f"sed -i 's/^hang_aftr/hang_after/' {CONFIG}")
    started.run("systemctl", "reload", UNIT)
    assert containers(started) == before


def test_a_killed_container_costs_no_request_although_the_daemon_may_not_signal_it(started: Machine) -> None:
    drilled = json.loads(shell(started, "chatglm-hactl drill kill chatglm-02 --yes --json 2>/dev/null"))
    assert drilled["state"] == "done", drilled
    assert drilled["load"]["failed"] == 0, drilled
    refused = started.ask("chatglm-hactl", "drill", "hang", "chatglm-02", "--yes")
    assert refused.code == 5
    assert "the daemon may not signal chatglm-02" in refused.output
    until_green(started)


AS_ROOT = """\
[Service]
User=root
Group=root
CapabilityBoundingSet=~
SystemCallFilter=
ProtectSystem=no
ReadOnlyPaths=
"""


def test_what_a_daemon_that_ran_as_root_has_left_is_given_to_the_service(started: Machine) -> None:
    before, drop_in = containers(started), f"/etc/systemd/system/{UNIT}.service.d"
    started.run("mkdir", drop_in)
    started.put(f"{drop_in}/root.conf", AS_ROOT)
    shell(started, f"systemctl daemon-reload; systemctl restart {UNIT}")
    until_green(started)
    assert started.run("stat", "-c", "%U", "/var/lib/chatglm-ha/state.db") == "root\n"
    shell(started, f"rm -r {drop_in}; systemctl daemon-reload")
    with users(started) as seen:
        said = shell(started, f"apt-get install -q -y --reinstall {PACKAGE}")
        until_green(started)
    assert "the daemon runs as the user chatglm-ha from now on" in said
    assert seen.failures == [], str(seen)
    assert containers(started) == before
    assert started.run("find", "/var/lib/chatglm-ha", "/run/chatglm-ha", "-user", "root") == ""


def test_an_upgrade_under_load_costs_nobody_anything(started: Machine) -> None:
    shell(
        started,
        f"dpkg-deb --raw-extract {PACKAGE} /tmp/next; cd /tmp/next\n"
        "sed -i 's/^Version: .*/Version: 0.1.1/' DEBIAN/control\n"
        "sed -i 's/0\\.1\\.0/0.1.1/' usr/lib/chatglm-ha/lib/*/site-packages/hasupervisor/__init__.py\n"
        f"dpkg-deb --root-owner-group -Znone --build /tmp/next {NEXT}; rm -r /tmp/next",
    )
    before, pid = containers(started), started.main_pid(UNIT)
    with users(started) as seen:
        shell(started, f"apt-get install -q -y {NEXT}")
        until_another_daemon(started, pid)
        status = until_green(started)
    assert status["version"] == "0.1.1"
    assert seen.failures == [], str(seen)
    assert containers(started) == before
    assert "GREEN" in started.run("runuser", "-u", "alice", "--", "chatglm-hactl", "status")


def test_a_removal_leaves_the_containers_serving_and_a_purge_ends_them(started: Machine) -> None:
    names = [line.split()[0].removeprefix("/") for line in containers(started)]
    with users(started) as seen:
        said = shell(started, "apt-get remove -q -y chatglm-ha")
        assert started.run("docker", "ps", "--format", "{{.Names}}").split() == sorted(names, reverse=True)
    assert "instances go on" in said
    assert seen.failures == [], str(seen)
    shell(started, "apt-get purge -q -y chatglm-ha")
    assert started.run("docker", "ps", "--all", "--quiet") == ""
    assert started.ask("getent", "passwd", UNIT).code == 2
    assert (
        started.run(
            "find", "/etc", "/usr", "/var/lib", "-xdev", "-not", "-path", "/var/lib/docker/*", "-name", "*chatglm*"
        )
        == ""
    )
