"""A host on which the project was installed from a checkout with the README's own commands."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.checkout import ROOT, copy_sources
from tests.real import images
from tests.real.dockerd import Engine
from tests.system import supplies
from tests.system.hosting import CHECKOUT, STANDIN, WHEELS
from tests.system.machine import Machine, machine


def readme_commands(heading: str) -> list[str]:
    """The blocks of commands under a heading of the README."""
    section = (ROOT / "README.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.S)


INSTALL, START, REMOVE = readme_commands("Install")


def install(host: Machine) -> None:
    """As the README says, in the checkout, without a network."""
    offline = f"export PIP_NO_INDEX=1 PIP_FIND_LINKS={WHEELS}; cd {CHECKOUT}\n"
    host.run("bash", "-eu", "-c", offline + INSTALL)


@pytest.fixture(scope="session")
def host(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A booted host, the project installed, the daemon not started yet."""
    sources = tmp_path_factory.mktemp("system") / "checkout"
    copy_sources(sources)
    folders = {sources: "/mnt", supplies.dependencies(): WHEELS, images.SCRIPTS: STANDIN}
    with machine(engine, supplies.root_file_system(), folders) as host:
        host.run("cp", "-r", "/mnt", CHECKOUT)
        install(host)
        yield host
