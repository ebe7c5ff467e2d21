"""Runs the tests quick to slow, so that a mistake shows in seconds and long drills come last; settles hypothesis.

Here are also the fixtures of more than one folder: a dockerd of this run's own, the names that it claims, the double of
NVML.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.claims import Claims
from tests.doubles.nvml.cards import build_library

if TYPE_CHECKING:
    from tests.real.dockerd import Engine

# A property holds or does not, however busy the machine is that checks it. What fails can be repeated from its print.
settings.register_profile("project", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

# Folders that build, or start real daemons, engines and containers. Every other folder is quick and comes first.
SLOW = ("packaging", "model", "nginx", "runtimes", "real", "system", "ansible")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(root).parts[0] if item.path.is_relative_to(root) else ""
        return SLOW.index(folder) + 1 if folder in SLOW else 0

    items.sort(key=rank)  # stable: the order within a folder stays


@pytest.fixture(scope="session")
def claims() -> Iterator[Claims]:
    claims = Claims()
    yield claims
    claims.close()


@pytest.fixture(scope="session")
def engine(claims: Claims) -> Iterator[Engine]:
    """A real dockerd of this run (live-restore, own bridge, no firewall rules). Leave it running and empty."""
    from tests.real.dockerd import own_dockerd  # 0.2 s that the quick tests do not need

    with own_dockerd(claims) as engine:
        yield engine


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the double of NVML, compiled once a run."""
    return build_library(tmp_path_factory.mktemp("nvml-library"))
