"""A booted Debian with an ssh server, and beside it two versions of the package, which were built on it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ansible.controller import Controller
from tests.checkout import copy_sources
from tests.real import images
from tests.real.dockerd import Engine
from tests.system import supplies
from tests.system.hosting import CHECKOUT, STANDIN, WHEELS
from tests.system.machine import Machine, machine

ALSO = ("openssh-server", "python3-apt", "sudo")
BUILD_S = 240.0
SERVICE = {"runtime": "process", "instances": 2}
PROCESS = {"command": ["/bin/sh", "-c", f"exec python3 {STANDIN}/server.py instance-$PORT"]}
# An archive of Debian packages with nothing in it: what the host lacks cannot be had, and it takes no time to know.
ARCHIVE = (
    "mkdir -p /srv/archive; : >/srv/archive/Packages\n"
    "echo 'deb [trusted=yes] file:/srv/archive ./' >/etc/apt/sources.list"
)
# The same tree as the next version.
NEXT = (
    "rm -rf /tmp/next; dpkg-deb --raw-extract {old} /tmp/next; cd /tmp/next\n"
    "sed -i 's/^Version: .*/Version: 0.1.1/' DEBIAN/control\n"
    "sed -i 's/0\\.1\\.0/0.1.1/' usr/lib/chatglm-ha/lib/*/site-packages/hasupervisor/__init__.py\n"
    "dpkg-deb --root-owner-group -Znone --build /tmp/next {new}; rm -r /tmp/next"
)


@dataclass(frozen=True, slots=True)
class Site:
    """A host, the desk that it is commanded from, and the folder of packages there."""

    host: Machine
    controller: Controller
    packages: Path

    def take(self, host: Machine, package: str) -> None:
        """Brings a package from a host to the desk."""
        (self.packages / Path(package).name).write_bytes(base64.b64decode(host.run("base64", package)))


@pytest.fixture(scope="session")
def site(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    sources = tmp_path_factory.mktemp("ansible") / "checkout"
    copy_sources(sources)
    folders = {sources: "/mnt", supplies.dependencies(): WHEELS, images.SCRIPTS: STANDIN}
    with machine(engine, supplies.root_file_system("bookworm", ALSO), folders, name="ansible-host") as host:
        host.run("bash", "-c", ARCHIVE)
        desk, packages = tmp_path_factory.mktemp("desk"), tmp_path_factory.mktemp("packages")
        variables = {
            "chatglm_ha_version": "0.1.0",
            "chatglm_ha_package": f"{packages}/chatglm-ha_{{{{ chatglm_ha_version }}}}.deb",
            "chatglm_ha_service": SERVICE,
            "chatglm_ha_process": PROCESS,
            "chatglm_ha_health": {"interval": 0.5},
            "chatglm_ha_drop_ins": ["process-runtime"],
            "chatglm_ha_check_timeout": 60,
            "chatglm_ha_check_delay": 1,
        }
        site = Site(host, Controller(desk, host, variables), packages)
        for package in build(host):
            site.take(host, package)
        yield site


def build(host: Machine) -> tuple[str, str]:
    """Has the host build 0.1.0, and 0.1.1 of the same."""
    offline = f"export PIP_NO_INDEX=1 PIP_FIND_LINKS={WHEELS}; cp -r /mnt {CHECKOUT}; cd {CHECKOUT}"
    old, new = "/srv/chatglm-ha_0.1.0.deb", "/srv/chatglm-ha_0.1.1.deb"
    host.run("bash", "-eu", "-c", f"{offline}\nmake deb\nmv dist/*.deb {old}; rm -r {CHECKOUT}", within=BUILD_S)
    host.run("bash", "-eu", "-c", NEXT.format(old=old, new=new))
    return old, new
