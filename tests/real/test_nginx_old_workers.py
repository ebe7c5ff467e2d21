"""Workers that a reload leaves behind: counted while they finish their streams, and not multiplied by newcomers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from hasupervisor.act.nginx import lookout
from hasupervisor.act.nginx.settings import NginxSettings
from tests.real.gatewaying import Instance, ask, running, table
from tests.real.waiting import eventually


@pytest.fixture
def ports(port_range: Callable[[int], range]) -> range:
    return port_range(6)


async def test_workers_that_finish_their_streams_are_counted_until_they_end(tmp_path: Path, ports: range) -> None:
    settings = NginxSettings(dir=tmp_path / "nginx", mode="own", listen=f"127.0.0.1:{ports[0]}")
    stays, comes = Instance(ports[2], "chatglm-01", how="stream"), Instance(ports[3], "chatglm-02")
    for instance in (stays, comes):
        await instance.start()
    async with running(settings, ports[0]) as watched:
        await watched.route(table(stays))
        stream = asyncio.create_task(ask(ports[0], "POST /v1/chat/completions", "{}", deadline=60.0))
        await eventually(lambda: stays.taken == 1 or None, "the stream has begun", 10.0)
        view = await watched.route(table(stays, comes))
        assert view.old_workers == 1, "the worker that has the stream goes on"
        stays.release.set()
        assert (await stream).whole
        await watched.until(lambda view: view.old_workers == 0, within=2 * lookout.ASK_EVERY_S)
    for instance in (stays, comes):
        await instance.stop()
