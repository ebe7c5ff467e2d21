"""The daemon is started again while nobody serves: who comes meanwhile waits in the socket that systemd holds."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hasupervisor.act.nginx.gateway import Gateway
from hasupervisor.act.nginx.settings import NginxSettings
from hasupervisor.sdnotify import Keeping, Notifier
from tests.real.gatewaying import Instance, ask, table
from tests.real.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_defect_is_logged")


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The end of the notification socket that systemd has."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"{tmp_path}/notify")
        listener.settimeout(5)
        yield listener


@pytest.fixture
def notifier(tmp_path: Path, systemd: socket.socket) -> Iterator[Notifier]:
    notifier = Notifier(f"{tmp_path}/notify")
    yield notifier
    notifier.close()


def held_by(systemd: socket.socket) -> dict[str, socket.socket]:
    """What the daemon has left: the name, and the socket itself."""
    message, (descriptor,), _, _ = socket.recv_fds(systemd, 4096, 1)
    store, name = message.decode().split("\n")
    assert store == "FDSTORE=1"
    return {name.removeprefix("FDNAME="): socket.socket(fileno=descriptor)}


async def test_a_request_that_comes_between_two_daemons_waits_for_the_second_and_is_answered(
    tmp_path: Path, port_range: Callable[[int], range], systemd: socket.socket, notifier: Notifier
) -> None:
    ports = port_range(2)
    runtime = tmp_path / "run"  # systemd's RuntimeDirectory=
    runtime.mkdir()
    settings = NginxSettings(dir=tmp_path / "nginx", mode="own", listen=f"127.0.0.1:{ports[0]}", hold=20.0)
    instance = Instance(ports[1], "chatglm-01")
    first = Gateway(settings, lambda: None, keeper=Keeping(notifier), lasting=runtime)
    await first.start()
    first.want(table(others=(instance,)))
    await eventually(
        lambda: first.view().ok and first.view().live_generation == first.view().generation, "it is proven"
    )
    held = held_by(systemd)
    await first.close()

    asked = asyncio.create_task(ask(ports[0], "POST /", "patient"))
    (kept,) = held.values()
    # In the queue of the socket, to which nobody listens now: a connection that could be accepted.
    kept.setblocking(False)
    await eventually(lambda: _is_readable(kept), "nginx has asked")
    second = Gateway(settings, lambda: None, keeper=Keeping(notifier, held), lasting=runtime)
    await second.start()
    try:
        await eventually(lambda: second.view().held == 1, "the second daemon has found it")
        await instance.start()
        second.prove({instance.route.address: time.monotonic()})
        reply = await asked
        assert (reply.status, reply.json["body"]) == (200, "patient")
        assert second.view().generation == first.view().generation, "a start has reloaded nginx"
    finally:
        await instance.stop()
        await second.shutdown(patience=2.0)


def _is_readable(listener: socket.socket) -> bool:
    return bool(select.select([listener], [], [], 0)[0])
