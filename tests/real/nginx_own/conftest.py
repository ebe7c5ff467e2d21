"""An nginx of our own with its gateway, and three instances behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from hasupervisor.act.nginx.settings import NginxSettings
from tests.real.gatewaying import Instance, Watched, running


@pytest.fixture
def ports(port_range: Callable[[int], range]) -> range:
    return port_range(8)


@pytest.fixture
def settings(tmp_path: Path, ports: range) -> NginxSettings:
    return NginxSettings(
        dir=tmp_path / "nginx",
        mode="own",
        listen=f"127.0.0.1:{ports[0]}",
        hold=0,  # the waiting room has tests of its own
    )


@pytest.fixture
async def watched(settings: NginxSettings, ports: range) -> AsyncIterator[Watched]:
    async with running(settings, ports[0]) as watched:
        yield watched


@pytest.fixture
async def trio(ports: range) -> AsyncIterator[list[Instance]]:
    instances = [Instance(port, f"chatglm-{number:02}") for number, port in enumerate(ports[2:5], 1)]
    for instance in instances:
        await instance.start()
    yield instances
    for instance in instances:
        instance.release.set()
        await instance.stop()
