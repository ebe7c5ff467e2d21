"""The playbook against a host with systemd, nginx and an ssh server: installed, unchanged, refused, up and back."""

from __future__ import annotations

import json
import re
import ssl
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.ansible.conftest import SERVICE, Site
from tests.ansible.controller import Played
from tests.system.hosting import CONFIG, UNIT, lives, until_green, users
from tests.system.machine import Machine

pytestmark = pytest.mark.timeout(900)  # the first run fetches Debian and the packages

INCLUDE = "/etc/nginx/conf.d/chatglm-ha.conf"
DEFECT = re.compile(r"\bBUG\b|Traceback \(most recent call last\)")
NAME = "chat.example.com"
CERTIFICATE, KEY = "/etc/nginx/chat.pem", "/etc/nginx/chat.key"
TLS = {"server_name": NAME, "certificate": CERTIFICATE, "key": KEY}


@pytest.fixture(scope="module")
def dry(site: Site) -> Played:
    """A dry run against a host that has nothing yet."""
    played = site.controller.play(options=("--check",))
    assert site.host.ask("dpkg-query", "--show", "chatglm-ha").code == 1, played.output
    return played


@pytest.fixture(scope="module")
def first(site: Site, dry: Played) -> Played:
    """The first run: after it the host is installed and serves."""
    played = site.controller.play()
    assert played.code == 0, played.output
    return played


@pytest.fixture
def host(first: Played, site: Site) -> Iterator[Machine]:
    """The installed host. Fails the test in which its daemon logged a defect."""
    yield site.host
    site.host.run("journalctl", "--sync")
    said = [str(line.get("MESSAGE")) for line in site.host.journal(UNIT)]
    assert not [words for words in said if DEFECT.search(words)]


def version(host: Machine) -> str:
    """What dpkg has, and it has all of it."""
    return host.run("dpkg-query", "--show", "--showformat", "${Version} ${db:Status-Status}", "chatglm-ha")


def files(host: Machine) -> str:
    """What a play that is stopped must leave as it was: the texts, their rights, and all that dpkg has put there."""
    owned = host.run("stat", "-c", "%n %a %U %G", CONFIG, INCLUDE)
    return owned + host.run("sha256sum", CONFIG, INCLUDE) + host.run("dpkg", "--verify", "chatglm-ha")


def reloads_of_systemd(host: Machine) -> list[str]:
    """When systemd has read its units since the boot, and what it said."""
    host.run("journalctl", "--sync")
    said = host.run("journalctl", "--boot", "--no-pager", "--output", "short-iso-precise", "_PID=1")
    return [line for line in said.splitlines() if re.search(r": Reloading(\.|.* requested.*)$", line)]


# --- the first run, and the same again --------------------------------------------------------------------------------


def test_a_dry_run_before_the_first_one_says_that_the_package_would_be_installed(dry: Played) -> None:
    assert dry.code == 0, dry.output
    assert dry.changed == ["Install chatglm-ha 0.1.0"], dry.output


def test_the_first_run_installs_a_host_that_serves(host: Machine, first: Played) -> None:
    assert first.recap["gpu-host"]["failed"] == 0
    assert version(host) == "0.1.0 installed"
    assert host.shown(UNIT, "UnitFileState") == "enabled"
    assert host.shown(UNIT, "DropInPaths").endswith("chatglm-ha.service.d/process-runtime.conf")
    assert host.shown(UNIT, "NeedDaemonReload") == "no"
    assert host.run("stat", "-c", "%a %U %G", CONFIG) == "640 root chatglm-ha\n"
    with users(host) as seen:
        status = until_green(host)
    assert status["serving"] == 2
    assert seen.failures == [], str(seen)
    assert seen.sent > 0


def test_a_plain_host_keeps_every_file_of_the_package_as_it_is(host: Machine) -> None:
    assert host.run("dpkg", "--verify", "chatglm-ha") == ""


def test_a_second_run_changes_nothing(host: Machine, site: Site) -> None:
    before, reloads, pid = files(host), reloads_of_systemd(host), host.main_pid(UNIT)
    played = site.controller.play()
    assert played.code == 0, played.output
    assert played.recap["gpu-host"]["changed"] == 0, played.changed
    assert files(host) == before
    assert reloads_of_systemd(host) == reloads
    assert host.main_pid(UNIT) == pid


# --- what is stopped --------------------------------------------------------------------------------------------------


def assert_stopped(site: Site, words: str, **variables: Any) -> Played:
    """The play ends with these words, and the host goes on as before: files, version, daemon, instances, users."""
    host = site.host
    before = files(host), version(host), host.main_pid(UNIT), lives(host)
    with users(host) as seen:
        played = site.controller.play(("gpu-host", "the-next-host"), **variables)
        assert played.code != 0, played.output
        assert (files(host), version(host), host.main_pid(UNIT), lives(host)) == before
    assert words in played.words, played.output
    assert seen.failures == [], str(seen)
    assert host.ask("bash", "-c", "ls -d /usr/lib/chatglm-ha.*").code != 0, "the package was left there"
    assert "the-next-host" not in played.recap, "the next host was touched"
    return played


def test_a_wrong_value_is_stopped_before_it_is_written_and_the_next_host_is_not_touched(
    host: Machine, site: Site
) -> None:
    assert_stopped(site, "service.max: 1 is below service.min = 2", chatglm_ha_service={**SERVICE, "max": 1})


def test_a_value_that_the_next_version_does_not_take_is_stopped_before_that_is_installed(
    host: Machine, site: Site
) -> None:
    """Else dpkg would restart a daemon that cannot start."""
    health = {"intervall": 0.5}
    wanted = "health.intervall: unknown key; did you mean interval?"
    assert_stopped(site, wanted, chatglm_ha_version="0.1.1", chatglm_ha_health=health)


def test_a_site_that_nginx_does_not_take_is_stopped_before_it_is_written(host: Machine, site: Site) -> None:
    before = host.run("pgrep", "-f", "^nginx: worker")
    assert_stopped(site, f'cannot load certificate "{CERTIFICATE}"', chatglm_ha_tls=TLS)
    assert host.run("pgrep", "-f", "^nginx: worker") == before
    assert "test is successful" in host.run("nginx", "-t")


def test_a_package_of_another_version_is_stopped(host: Machine, site: Site) -> None:
    package = str(site.packages / "chatglm-ha_0.1.1.deb")
    wanted = f"{package} is chatglm-ha 0.1.1 for amd64, and gpu-host is to have chatglm-ha 0.1.2"
    assert_stopped(site, wanted, chatglm_ha_version="0.1.2", chatglm_ha_package=package)


def test_a_package_with_another_checksum_is_stopped(host: Machine, site: Site) -> None:
    checksum = "sha256:" + 64 * "0"
    assert_stopped(site, f", not {checksum}", chatglm_ha_version="0.1.1", chatglm_ha_package_checksum=checksum)


def test_where_the_package_finds_no_python_it_is_said_how_to_get_one(host: Machine, site: Site) -> None:
    host.run("mkdir", "-p", "/srv/odd/DEBIAN")
    fields = ["Package: chatglm-ha", "Version: 0.1.3", "Architecture: amd64", "Depends: python3.99, systemd"]
    host.put("/srv/odd/DEBIAN/control", "\n".join([*fields, "Maintainer: nobody", "Description: none", ""]))
    host.run("dpkg-deb", "--build", "/srv/odd", "/srv/chatglm-ha_0.1.3.deb")
    try:
        site.take(host, "/srv/chatglm-ha_0.1.3.deb")
        played = assert_stopped(site, "was built for python3.99, which Debian 12", chatglm_ha_version="0.1.3")
        assert "apt-get install python3.11 python3.11-venv on Ubuntu 22.04" in played.words
    finally:
        host.run("rm", "-r", "/srv/odd", "/srv/chatglm-ha_0.1.3.deb")


def test_a_package_that_dpkg_cannot_install_leaves_the_host_its_configuration(host: Machine, site: Site) -> None:
    shell = "cd /srv; dpkg-deb --raw-extract chatglm-ha_0.1.1.deb odd; sed -i 's/0.1.1$/0.1.4/' odd/DEBIAN/control\n"
    shell += "printf '#!/bin/sh\\nexit 1\\n' >odd/DEBIAN/preinst; dpkg-deb -Znone --build odd chatglm-ha_0.1.4.deb"
    host.run("bash", "-eu", "-c", shell)
    try:
        site.take(host, "/srv/chatglm-ha_0.1.4.deb")
        wanted = "gpu-host has chatglm-ha installed 0.1.0, not 0.1.4; what runs goes on"
        assert_stopped(site, wanted, chatglm_ha_version="0.1.4", chatglm_ha_health={"interval": 0.9})
    finally:
        host.run("rm", "-r", "/srv/odd", "/srv/chatglm-ha_0.1.4.deb")


# --- what is taken over -----------------------------------------------------------------------------------------------


def test_a_key_that_a_running_daemon_can_change_is_reloaded_and_another_restarts_it_alone(
    host: Machine, site: Site
) -> None:
    before, pid = lives(host), host.main_pid(UNIT)
    with users(host) as seen:
        played = site.controller.play(chatglm_ha_health={"interval": 0.7})
        assert played.changed == ["Write the configuration", "Take the configuration over"], played.output
        assert host.document("config", "show")["config"]["health"]["interval"] == 0.7
        assert host.main_pid(UNIT) == pid
        played = site.controller.play(chatglm_ha_http={"listen": "127.0.0.1:9199"})
        restart = "Restart the daemon for what only a restart changes"
        assert played.changed == ["Write the configuration", restart], played.output
        assert host.document("config", "show")["config"]["http"]["listen"] == "127.0.0.1:9199"
        assert host.main_pid(UNIT) != pid
    assert lives(host) == before
    assert seen.failures == [], str(seen)


def test_a_higher_version_is_rolled_out_under_load_and_the_version_set_back_rolls_it_back(
    host: Machine, site: Site
) -> None:
    put_certificate(host)
    before, reloads = lives(host), reloads_of_systemd(host)
    with users(host) as seen:
        up = site.controller.play(chatglm_ha_version="0.1.1", chatglm_ha_tls=TLS)
        assert up.code == 0, up.output
        assert version(host) == "0.1.1 installed"
        assert until_green(host)["version"] == "0.1.1"
        assert health_by_tls(host)["status"] == "healthy"
        back = site.controller.play()
        assert back.code == 0, back.output
        assert version(host) == "0.1.0 installed"
        assert until_green(host)["version"] == "0.1.0"
    assert seen.failures == [], str(seen)
    assert seen.sent > 100
    assert lives(host) == before, "an instance was disturbed"
    assert "Install chatglm-ha 0.1.1" in up.changed
    assert "Install chatglm-ha 0.1.0" in back.changed
    assert reloads_of_systemd(host) == reloads, "systemd was told to read units that have not changed"
    assert host.run("dpkg", "--verify", "chatglm-ha") == ""


def put_certificate(host: Machine) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)]), datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    host.put(CERTIFICATE, made.sign(key, hashes.SHA256()).public_bytes(form[0]).decode())
    host.put(KEY, key.private_bytes(*form).decode())


def health_by_tls(host: Machine) -> dict[str, object]:
    """What a client gets that trusts that certificate, and calls the host by its address."""
    trust = ssl.create_default_context(cadata=host.run("cat", CERTIFICATE))
    trust.check_hostname = False  # the test has no name service
    with urllib.request.urlopen(f"https://{host.address}/health", None, 10, context=trust) as answer:
        found: dict[str, object] = json.loads(answer.read())
    return found


def test_those_who_may_command_have_to_be_users_of_the_host(host: Machine, site: Site) -> None:
    assert_stopped(site, "One or more supplied key could not be found", chatglm_ha_operators=["nobody-of-that-name"])
    host.run("useradd", "alice")
    try:
        played = site.controller.play(chatglm_ha_operators=["alice"])
        assert played.code == 0, played.output
        host.run("runuser", "-u", "alice", "--", "chatglm-hactl", "pause", "--for", "60s")
        host.run("chatglm-hactl", "resume")
    finally:
        host.run("userdel", "alice")


def test_a_host_that_does_not_serve_in_time_stops_the_play_with_its_status(host: Machine, site: Site) -> None:
    host.run("chatglm-hactl", "pause", "--reason", "not today")
    try:
        host.signal(lives(host)[0][1], "KILL")
        played = site.controller.play(("gpu-host", "the-next-host"), chatglm_ha_check_timeout=2)
        assert played.code != 0
        assert "gpu-host does not serve as it should, and no further host was touched" in played.words
        assert "not today" in played.words, played.output
        assert "the-next-host" not in played.recap
    finally:
        host.run("chatglm-hactl", "resume")
        until_green(host)


def test_a_dry_run_says_what_would_change_and_changes_nothing(host: Machine, site: Site) -> None:
    before = files(host), version(host), host.main_pid(UNIT), lives(host)
    health = {"interval": 0.6}
    played = site.controller.play(options=("--check", "--diff"), chatglm_ha_version="0.1.1", chatglm_ha_health=health)
    assert played.code == 0, played.output
    assert {"Write the configuration", "Install chatglm-ha 0.1.1"} <= set(played.changed)
    assert "+interval = 0.6" in played.output
    assert (files(host), version(host), host.main_pid(UNIT), lives(host)) == before


def test_a_daemon_that_was_there_before_dockerd_may_use_it_afterwards(host: Machine, site: Site) -> None:
    host.run("groupadd", "--force", "docker")
    host.ask("gpasswd", "--delete", "chatglm-ha", "docker")
    pid = host.main_pid(UNIT)
    tasks = site.controller.play_tasks("docker.yml")
    assert tasks.code == 0, tasks.output
    assert tasks.changed == ["Put the daemon's user into the group", "Restart the daemon for its groups"]
    assert "docker" in host.run("id", "--name", "--groups", "chatglm-ha").split()
    assert host.main_pid(UNIT) != pid
    assert site.controller.play_tasks("docker.yml").changed == []
    until_green(host)


def test_without_dockerd_nobody_is_put_into_its_group(host: Machine, site: Site) -> None:
    host.ask("groupdel", "docker")
    tasks = site.controller.play_tasks("docker.yml")
    assert tasks.code == 0, tasks.output
    assert tasks.changed == []
