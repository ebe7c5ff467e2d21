"""Runs the tests quick to slow, so that a mistake shows in seconds and long drills come last; settles hypothesis."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A property holds or does not, however busy the machine is that checks it. What fails can be repeated from its print.
settings.register_profile("project", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

# Folders that build, or start real daemons, engines and containers. Every other folder is quick and comes first.
SLOW = ("packaging", "model", "nginx", "runtimes", "real", "system")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(root).parts[0] if item.path.is_relative_to(root) else ""
        return SLOW.index(folder) + 1 if folder in SLOW else 0

    items.sort(key=rank)  # stable: the order within a folder stays
