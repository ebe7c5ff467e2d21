"""A request in an instance that is silent: told 504 once, and begun nowhere else. A dead one costs only time."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from hasupervisor.act.nginx.settings import NginxSettings
from tests.real.gatewaying import Instance, Watched, ask, refused, running, table
from tests.real.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_defect_is_logged")

SILENCE_S = 1.0  # 600 s where users are


@pytest.fixture(params=[0.0, 10.0], ids=["told-at-once", "held"])
async def impatient(request: pytest.FixtureRequest, settings: NginxSettings, ports: range) -> AsyncIterator[Watched]:
    """A gateway that waits a second for a silent instance, without and with the waiting room."""
    async with running(replace(settings, silence=SILENCE_S, hold=request.param), ports[0]) as watched:
        yield watched


@pytest.fixture
def unaccepting(ports: range) -> Iterator[Instance]:
    """An instance whose queue of connections is full: a connect to it times out."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports[6]))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", ports[6]))
        yield Instance(ports[6], "chatglm-04")
        for filler in fillers:
            filler.close()


def connected(port: int) -> bool:
    """Whether somebody's request is there."""
    found = psutil.net_connections("tcp")
    return any(c.status == psutil.CONN_ESTABLISHED and c.laddr and c.laddr.port == port for c in found)


async def test_a_request_that_was_taken_and_met_silence_is_told_504_after_that_time_and_is_begun_once(
    impatient: Watched, trio: list[Instance]
) -> None:
    for instance in trio:
        instance.how = "slow"
    await impatient.route(table(*trio))
    began = time.monotonic()
    reply = await ask(impatient.port, "POST /", "{}")
    took = time.monotonic() - began
    assert (reply.status, sum(instance.taken for instance in trio)) == (504, 1)
    assert '"type":"timeout"' in reply.body
    assert "retry-after" not in reply.headers
    assert SILENCE_S <= took < 2 * SILENCE_S, "another one was waited for"


async def test_a_request_whose_connection_timed_out_goes_on_to_another(
    settings: NginxSettings, ports: range, trio: list[Instance], unaccepting: Instance
) -> None:
    async with running(replace(settings, silence=5.0), ports[0]) as watched:
        await watched.route(table(trio[0], unaccepting))
        replies = await asyncio.gather(*(ask(watched.port, "POST /", "{}") for _ in range(4)))
        assert {reply.status for reply in replies} == {200}


async def test_a_request_in_an_instance_that_is_stopped_and_then_killed_is_answered_by_another(
    impatient: Watched, trio: list[Instance], ports: range, standin_server: Path
) -> None:
    environment = dict(os.environ, HOST="127.0.0.1", PORT=str(ports[5]), SERVICE_S="0.3")
    victim = await asyncio.create_subprocess_exec(sys.executable, str(standin_server), "victim", env=environment)
    try:
        await eventually(lambda: not refused(ports[5]), "the stand-in listens")
        await impatient.route(table(Instance(ports[5], "victim")))
        asked = asyncio.create_task(ask(impatient.port, "POST /", '{"prompt":"hi"}'))
        await eventually(lambda: connected(ports[5]), "it is at work, for 0.3 s")
        victim.send_signal(signal.SIGSTOP)
        await impatient.route(table(trio[0]))  # out of rotation; the request is still with the victim
        victim.kill()
        if impatient.settings.hold:
            await eventually(lambda: impatient.gateway.view().held == 1, "it waits")
            impatient.gateway.prove({trio[0].route.address: time.monotonic()})
        reply = await asked
        # Without the waiting room there is nobody else in the list that the request began with.
        assert (reply.status, trio[0].taken) == ((200, 1) if impatient.settings.hold else (502, 0))
    finally:
        if victim.returncode is None:
            victim.kill()
        await victim.wait()


async def test_a_request_of_a_killed_instance_goes_on_however_often_that_happens_within_the_tries(
    impatient: Watched, trio: list[Instance]
) -> None:
    trio[0].how = trio[1].how = "cut"
    await impatient.route(table(*trio))
    replies = [await ask(impatient.port, "POST /", "{}") for _ in range(6)]
    assert {reply.status for reply in replies} == {200}
