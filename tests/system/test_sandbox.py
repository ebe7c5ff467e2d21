"""What the unit takes from the daemon and from the instances that it starts; that all goes on, other tests show."""

from __future__ import annotations

import re

import pytest

from tests.checkout import ROOT
from tests.system.hosting import CONFIG, SETTINGS, UNIT, until_green
from tests.system.machine import Machine

pytestmark = pytest.mark.timeout(900)  # the first run fetches Debian and the packages

WORST = 7.2  # systemd-analyze says 7.2 on Debian 12, and 9.6 without the directives
CAP_SYS_MODULE, CAP_SYS_BOOT, CAP_SYS_TIME, CAP_SYSLOG = 16, 22, 25, 34  # bits, from linux/capability.h


@pytest.fixture
def served(host: Machine) -> Machine:
    host.put(CONFIG, SETTINGS)
    host.run("systemctl", "start", UNIT)
    until_green(host)
    return host


def everybody(host: Machine) -> list[int]:
    """The daemon and its instances."""
    return [host.main_pid(UNIT), *(instance["pid"] for instance in host.document("status")["instances"])]


def test_systemd_finds_the_unit_less_exposed_than_a_bare_one(served: Machine) -> None:
    said = served.run("systemd-analyze", "security", "--no-pager", UNIT)
    found = re.search(r"Overall exposure level for chatglm-ha.service: ([\d.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= WORST


def test_neither_the_daemon_nor_an_instance_can_write_where_programs_and_settings_lie(served: Machine) -> None:
    for pid in everybody(served):
        inside = ["nsenter", "--target", str(pid), "--mount", "touch"]
        for path in (
            "/usr/bin/mine",
            "/etc/passwd.new",
            "/boot/mine",
            "/sys/fs/cgroup/mine",
            "/proc/sys/kernel/hostname",
        ):
            ran = served.ask(*inside, path)
            assert ran.code != 0, path
            assert "Read-only file system" in ran.output, ran.output
        for path in ("/var/lib/chatglm-ha/mine", "/run/chatglm-ha/mine", "/var/log/chatglm-ha/mine"):
            served.run(*inside, path)
            served.run("rm", path)


def test_what_could_set_the_clock_or_end_the_host_is_taken_and_what_gpus_need_is_not(served: Machine) -> None:
    for pid in everybody(served):
        status = served.run("cat", f"/proc/{pid}/status")
        seccomp, bounding = re.search(r"^Seccomp:\s*(\d)$", status, re.M), re.search(r"^CapBnd:\s*(\w+)$", status, re.M)
        assert seccomp is not None
        assert bounding is not None
        assert seccomp[1] == "2", "no filter of system calls"
        has = int(bounding[1], 16)
        assert not has >> CAP_SYS_BOOT & 1
        assert not has >> CAP_SYS_TIME & 1
        assert has >> CAP_SYS_MODULE & 1
        assert has >> CAP_SYSLOG & 1


def test_every_directive_of_the_sandbox_is_in_the_table_of_the_page() -> None:
    unit = (ROOT / "systemd/chatglm-ha.service").read_text().partition("# What neither the daemon")[2]
    page = (ROOT / "docs/install.md").read_text()
    directives = {line.partition("=")[0] for line in unit.splitlines() if "=" in line and not line.startswith("#")}
    assert len(directives) > 8
    missing = {name for name in directives if f"| `{name}" not in page} - {"SystemCallErrorNumber", "WantedBy"}
    assert not missing
