"""What is judged of the host: small file systems, clocks, limits, security modules."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasupervisor.doctor import host
from hasupervisor.doctor.finding import Finding, Level


def levels(findings: list[Finding]) -> list[Level]:
    return [found.level for found in findings]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 50 MiB with few inodes to spare."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", folder], check=True, timeout=10)
    yield folder
    subprocess.run(["umount", folder], check=True, timeout=10)


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


# --- disks ------------------------------------------------------------------------------------------------------------


def test_a_disk_with_hardly_any_room_is_to_be_mended(small: Path) -> None:
    (found,) = host.disks([small / "state", small / "not" / "made" / "yet"])
    assert found.level is Level.FAIL
    assert found.sentence == f"0.0 GiB free for {small}/state, {small}/not/made/yet"
    assert f"df -h {small}/state" in str(found.hint)


def test_a_disk_that_can_only_be_read_is_to_be_mended(small: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small], check=True, timeout=10)
    (found,) = host.disks([small])
    assert (found.level, found.sentence) == (Level.FAIL, f"{small} can only be read")


def test_a_disk_whose_inodes_run_out_is_to_be_looked_at(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["mount", "-o", "remount,size=2g,nr_inodes=200", small], check=True, timeout=10)
    for number in range(197):
        (small / str(number)).touch()
    (found,) = host.disks([small])
    assert found.level is Level.WARN
    assert found.sentence.endswith("but only 2 of 200 inodes")


def test_file_systems_are_told_apart(small: Path, tmp_path: Path) -> None:
    assert len(host.disks([small, tmp_path, tmp_path / "more"])) == 2


# --- clock and limits -------------------------------------------------------------------------------------------------


def test_the_kernel_is_asked_for_the_clock() -> None:
    assert "does not say" not in host.clock().sentence


@pytest.mark.parametrize(("error_s", "level"), [(0.012, Level.OK), (15.9, Level.OK), (16.0, Level.WARN)])
def test_a_clock_that_nobody_keeps_is_to_be_looked_at(error_s: float, level: Level) -> None:
    assert host.judge_clock(error_s).level is level


def test_the_files_that_the_running_daemon_may_open_count_before_what_its_unit_says() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (1024, 4096))
        found = host.open_files(process.pid, 65536, held=1000)
        assert found.level is Level.WARN
        assert "may open 1024 files, and needs 1320 to hold 1000 requests" in found.sentence
        assert host.open_files(process.pid, None, held=700).level is Level.OK


def test_without_a_daemon_its_unit_counts_and_without_that_this_shell() -> None:
    assert host.open_files(None, 1024, held=1000).level is Level.WARN
    assert host.open_files(None, 65536, held=1000).sentence == "its unit lets the daemon open 65536 files"
    assert host.open_files(None, None, held=1).sentence.startswith("a daemon started here may open")


# --- security modules -------------------------------------------------------------------------------------------------


def test_selinux_that_keeps_nginx_from_the_instances_is_to_be_mended(tmp_path: Path) -> None:
    write(tmp_path, "sys/fs/selinux/enforce", "1")
    write(tmp_path, "sys/fs/selinux/booleans/httpd_can_network_connect", "0 0")
    (found,) = host.modules(tmp_path)
    assert (found.level, found.hint) == (Level.FAIL, "setsebool -P httpd_can_network_connect 1")
    write(tmp_path, "sys/fs/selinux/booleans/httpd_can_network_connect", "1 1")
    assert levels(host.modules(tmp_path)) == [Level.OK]


def test_apparmor_that_confines_nginx_is_to_be_looked_at(tmp_path: Path) -> None:
    profiles = "/usr/sbin/nginx (enforce)\ndocker-default (enforce)\n/usr/bin/man (enforce)\n"
    write(tmp_path, "sys/kernel/security/apparmor/profiles", profiles)
    (found,) = host.modules(tmp_path)
    assert found.level is Level.WARN
    assert found.sentence == "AppArmor confines nginx by the profile /usr/sbin/nginx"


def test_no_security_module_is_fine(tmp_path: Path) -> None:
    assert levels(host.modules(tmp_path)) == [Level.OK]


def test_the_limit_of_this_process_is_the_kernels() -> None:
    assert host.open_files(os.getpid(), None, held=1).sentence.startswith("the daemon may open")
