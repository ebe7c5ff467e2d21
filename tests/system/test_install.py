"""Onto a host and off it again, by `make install` and as a package: upgrades under load, what stays, what goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.checkout import copy_sources
from tests.real import images
from tests.real.dockerd import Engine
from tests.system import supplies
from tests.system.hosting import (
    CHECKOUT,
    CONFIG,
    PROCESSES,
    SETTINGS,
    STANDIN,
    UNIT,
    WHEELS,
    lives,
    until_another_daemon,
    until_green,
    users,
)
from tests.system.machine import Machine, machine

pytestmark = pytest.mark.timeout(900)  # the first run fetches Debian and the packages

OFFLINE = f"export PIP_NO_INDEX=1 PIP_FIND_LINKS={WHEELS}; cd {CHECKOUT}\n"
MARK = "# the operator's own words\n"
UNIT_FILE = "/usr/lib/systemd/system/chatglm-ha.service"
INCLUDE = "/etc/nginx/conf.d/chatglm-ha.conf"
PACKAGE = f"{CHECKOUT}/dist/chatglm-ha_0.1.0_*.deb"
BUILD_S = 180.0


@pytest.fixture(scope="module", params=supplies.SUITES)
def bare(engine: Engine, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A booted host with the checkout on it and nothing installed; Debian's default site is gone."""
    suite: str = request.param
    sources = tmp_path_factory.mktemp("install") / "checkout"
    copy_sources(sources)
    folders = {sources: "/mnt", supplies.dependencies(suite): WHEELS, images.SCRIPTS: STANDIN}
    with machine(engine, supplies.root_file_system(suite), folders, name=suite) as bare:
        bare.run("cp", "-r", "/mnt", CHECKOUT)
        bare.run("rm", "/etc/nginx/sites-enabled/default")
        yield bare


@pytest.fixture
def by_hand(bare: Machine) -> Machine:
    """The host with the checkout installed by `make install`, and its daemon serving."""
    if is_packaged(bare):
        shell(bare, "dpkg --purge chatglm-ha")
    if bare.ask("test", "-e", UNIT_FILE).code:
        make(bare, "install")
    return serving(bare)


@pytest.fixture(scope="module")
def package(bare: Machine) -> str:
    """The package, built on that host."""
    make(bare, "deb")
    return shell(bare, f"ls {PACKAGE}").strip()


@pytest.fixture
def by_package(bare: Machine, package: str) -> Machine:
    """The host with the package installed, and its daemon serving."""
    if not is_packaged(bare):
        shell(bare, f"dpkg --install {package}")
    return serving(bare)


def shell(host: Machine, script: str) -> str:
    return host.run("bash", "-eu", "-c", script, within=BUILD_S)


def make(host: Machine, target: str) -> str:
    """`make TARGET` in the checkout, without a network."""
    return shell(host, f"{OFFLINE}make {target} 2>&1")


def is_packaged(host: Machine) -> bool:
    return host.ask("dpkg-query", "-W", "-f", "${db:Status-Status}", "chatglm-ha").output == "installed"


def serving(host: Machine) -> Machine:
    host.put(CONFIG, MARK + SETTINGS)
    if host.ask("systemctl", "is-active", UNIT).code:
        host.run("systemctl", "start", UNIT)
    until_green(host)
    return host


def reloads_of_systemd(host: Machine) -> int:
    """How often systemd has spoken of reading its units since the boot: Debian 13's does twice each time."""
    host.run("journalctl", "--sync")
    said = host.run("journalctl", "--boot", "--no-pager", "--output", "cat", "_PID=1")
    return sum(line.startswith("Reloading") and UNIT not in line and "Keeps" not in line for line in said.splitlines())


def examined(host: Machine) -> list[dict[str, Any]]:
    """What `doctor` says is to be mended."""
    return [check for check in host.document("doctor")["checks"] if check["level"] == "fail"]


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_an_installation_puts_everything_where_a_host_has_it(bare: Machine) -> None:
    said = make(bare, "install")
    assert "installed chatglm-had 0.1.0" in said
    assert "systemctl enable --now chatglm-ha" in said
    assert bare.run("systemd-analyze", "verify", UNIT_FILE) == ""
    assert bare.shown(UNIT, "LoadState") == "loaded"
    assert bare.shown(UNIT, "LimitNOFILESoft") == "65536"
    assert bare.run("chatglm-hactl", "-V") == "chatglm-hactl 0.1.0\n"
    assert bare.run("getent", "group", "chatglm-ha")
    assert bare.run("stat", "-c", "%a %U %G", CONFIG) == "640 root chatglm-ha\n"
    assert "test is successful" in bare.run("nginx", "-t")  # with the include, and no daemon yet
    bare.run("logrotate", "--debug", "/etc/logrotate.d/chatglm-ha")
    for page in ("man1/chatglm-hactl.1.gz", "man8/chatglm-had.8.gz"):
        assert ".SH SYNOPSIS" in shell(bare, f"zcat /usr/share/man/{page}")
    completion = "/usr/share/bash-completion/completions/chatglm-hactl"
    assert "complete " in shell(bare, f". {completion}; complete -p chatglm-hactl")
    assert shell(bare, f"ls -A {CHECKOUT}") == shell(bare, "ls -A /mnt"), "it left something in the checkout"
    assert bare.ask("/usr/lib/chatglm-ha/bin/python", "-c", "import torch").code != 0


def test_the_installed_daemon_serves_and_nothing_is_to_be_mended(by_hand: Machine) -> None:
    with users(by_hand) as seen:
        assert examined(by_hand) == []
    assert seen.failures == []
    assert seen.sent > 0


def test_a_second_installation_under_load_restarts_only_the_daemon(by_hand: Machine) -> None:
    before, pid, reloads = lives(by_hand), by_hand.main_pid(UNIT), reloads_of_systemd(by_hand)
    with users(by_hand) as seen:
        said = make(by_hand, "install")
        until_another_daemon(by_hand, pid)
        until_green(by_hand)
    assert lives(by_hand) == before
    assert seen.failures == [], str(seen)
    assert by_hand.run("cat", CONFIG) == MARK + SETTINGS
    assert f"kept {CONFIG}" in said
    assert reloads_of_systemd(by_hand) == reloads, "systemd was told to read units that have not changed"
    assert by_hand.shown(UNIT, "NeedDaemonReload") == "no"
    assert shell(by_hand, "ls -d /usr/lib/chatglm-ha*") == "/usr/lib/chatglm-ha\n"


def test_a_unit_that_has_changed_is_read_anew(by_hand: Machine) -> None:
    unit, reloads = f"{CHECKOUT}/systemd/chatglm-ha.service", reloads_of_systemd(by_hand)
    shell(by_hand, f"sed -i 's/^WatchdogSec=.*/WatchdogSec=31s/' {unit}")
    assert "the unit is changed: systemctl daemon-reload" in make(by_hand, "install")
    assert by_hand.shown(UNIT, "WatchdogUSec") == "31s"
    assert reloads_of_systemd(by_hand) > reloads
    shell(by_hand, f"cp /mnt/systemd/chatglm-ha.service {unit}")


def test_removed_by_hand_the_instances_serve_on_and_the_next_installation_takes_them_over(by_hand: Machine) -> None:
    before = lives(by_hand)
    with users(by_hand) as seen:
        said = make(by_hand, "uninstall")
        assert by_hand.ask("which", "chatglm-hactl", "chatglm-had").output == ""
        assert by_hand.shown(UNIT, "LoadState") == "not-found"
        assert by_hand.run("cat", CONFIG) == MARK + SETTINGS
        by_hand.run("systemctl", "reload", "nginx")
        make(by_hand, "install")
        by_hand.run("systemctl", "start", UNIT)
        until_green(by_hand)
    assert "Instances go on" in said
    assert lives(by_hand) == before
    assert seen.failures == [], str(seen)


def test_a_package_takes_over_what_was_installed_by_hand(by_hand: Machine, package: str) -> None:
    before = lives(by_hand)
    with users(by_hand) as seen:
        shell(by_hand, f"dpkg --install {package}")
        until_green(by_hand)
    assert lives(by_hand) == before
    assert seen.failures == [], str(seen)
    assert by_hand.run("cat", CONFIG) == MARK + SETTINGS
    assert shell(by_hand, "dpkg --verify chatglm-ha") == ""


def test_purged_by_hand_nothing_is_left(by_hand: Machine) -> None:
    make(by_hand, "uninstall PURGE=1")
    assert_gone(by_hand)


def assert_gone(host: Machine) -> None:
    elsewhere = ["-not", "-path", "/srv/*", "-not", "-path", "/root/.cache/pip/*"]  # the checkout, and pip's cache
    assert host.run("find", "/", "-xdev", *elsewhere, "-name", "*chatglm*") == ""
    assert host.shown(UNIT, "LoadState") == "not-found"
    running = host.run("bash", "-c", PROCESSES)
    assert "chatglm" not in running
    assert f"{STANDIN}/server.py" not in running
    assert host.ask("getent", "group", "chatglm-ha").code == 2
    assert "test is successful" in host.run("nginx", "-t")


# --- as a package -----------------------------------------------------------------------------------------------------


def test_the_package_installs_and_serves_and_nothing_is_to_be_mended(by_package: Machine) -> None:
    assert shell(by_package, "dpkg --verify chatglm-ha; which chatglm-hactl") == "/usr/bin/chatglm-hactl\n"
    assert examined(by_package) == []


def test_a_package_is_left_to_dpkg(by_package: Machine) -> None:
    ran = by_package.ask("bash", "-c", f"{OFFLINE}make install")
    assert ran.code != 0
    assert "apt-get remove chatglm-ha" in ran.output


def test_an_upgrade_under_load_restarts_only_the_daemon(by_package: Machine, package: str) -> None:
    """The same tree as version 0.1.1."""
    shell(
        by_package,
        f"dpkg-deb --raw-extract {package} /tmp/next; cd /tmp/next\n"
        "sed -i 's/^Version: .*/Version: 0.1.1/' DEBIAN/control\n"
        "sed -i 's/0\\.1\\.0/0.1.1/' usr/lib/chatglm-ha/lib/*/site-packages/hasupervisor/__init__.py\n"
        "dpkg-deb --root-owner-group -Znone --build /tmp/next /tmp/next.deb",
    )
    before, pid, reloads = lives(by_package), by_package.main_pid(UNIT), reloads_of_systemd(by_package)
    with users(by_package) as seen:
        shell(by_package, "dpkg --install /tmp/next.deb")
        until_another_daemon(by_package, pid)
        status = until_green(by_package)
    assert status["version"] == "0.1.1"
    assert lives(by_package) == before
    assert seen.failures == [], str(seen)
    assert by_package.run("cat", CONFIG) == MARK + SETTINGS
    assert reloads_of_systemd(by_package) == reloads, "systemd was told to read units that have not changed"
    shell(by_package, "rm -r /tmp/next /tmp/next.deb")


def test_a_removed_package_leaves_instances_and_says_so_and_a_purged_one_nothing(by_package: Machine) -> None:
    before = lives(by_package)
    with users(by_package) as seen:
        said = shell(by_package, "dpkg --remove chatglm-ha")
        by_package.run("systemctl", "reload", "nginx")
    assert "instances go on" in said
    assert seen.failures == [], str(seen)
    for _, pid, _ in before:
        by_package.run("test", "-d", f"/proc/{pid}")
    shell(by_package, "dpkg --purge chatglm-ha")
    assert_gone(by_package)
