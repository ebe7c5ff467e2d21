"""An nginx of our own, whatever happens to its processes: killed, frozen, cut off, taken over, shut down."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hasupervisor.act.nginx import own, process
from hasupervisor.act.nginx.gateway import Gateway
from hasupervisor.act.nginx.settings import NginxSettings
from hasupervisor.model import Routing
from tests.real.gatewaying import Instance, Watched, addresses, ask, master_of, running, table
from tests.real.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_defect_is_logged")


async def test_a_restart_of_the_daemon_disturbs_nothing(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    first = Gateway(settings, lambda: None)
    await first.start()
    first.want(table(*trio[:2], others=(trio[2],)))
    await eventually(lambda: first.view().servers == 2, "two are routed")
    master, files, generation = master_of(settings), first.files(), first.view().generation
    assert master is not None
    workers = process.workers(master)
    await first.close()
    assert (await ask(ports[0], "POST /", "{}")).status == 200

    async with running(settings, ports[0]) as watched:
        view = watched.gateway.view()
        assert watched.gateway.on_disk() == addresses(*trio[:2])
        assert (view.ok, view.live, view.live_generation) == (True, addresses(*trio[:2]), generation)
        watched.gateway.want(table(*trio[:2], others=(trio[2],)))
        assert (await watched.gateway.test())[0]
        assert watched.gateway.files() == files
        assert (master_of(settings), process.workers(master)) == (master, workers)


async def test_a_reload_that_a_crash_has_cut_off_is_made_good_at_the_next_start(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    first = Gateway(settings, lambda: None)
    await first.start()
    first.want(table(*trio))
    await eventually(lambda: first.view().servers == 3, "three are routed")
    await first.close()
    # As if killed between the rename and the signal: the file is newer than what the workers run.
    upstream = settings.dir / "upstream.conf"
    newer = upstream.read_text().replace("default 2;", "default 3;").replace("generation 2", "generation 3")
    upstream.write_text(newer)
    async with running(settings, ports[0]) as watched:
        view = await watched.until(lambda view: view.live_generation == 3)
        assert view.live == addresses(*trio)


async def test_a_killed_master_is_replaced_within_a_second_and_requests_in_flight_are_answered(
    watched: Watched, trio: list[Instance]
) -> None:
    trio[0].how = "slow"
    await watched.route(table(trio[0]))
    long_one = asyncio.create_task(ask(watched.port, "POST /", "long"))
    await eventually(lambda: trio[0].taken == 1, "a request is in flight")
    master = master_of(watched.settings)
    assert master is not None
    killed_at = time.monotonic()
    os.kill(master, signal.SIGKILL)
    view = await watched.until(lambda view: master_of(watched.settings) not in (None, master) and view.ok)
    assert time.monotonic() - killed_at < 2.0
    assert view.live == addresses(trio[0])
    trio[0].release.set()
    assert (await long_one).json["body"] == "long"  # by the orphan that had taken it
    assert (await ask(watched.port, "POST /", "{}")).status == 200
    await eventually(lambda: not process.orphans(watched.dir), "the orphans have gone")


async def test_killed_master_and_workers_are_replaced(watched: Watched, trio: list[Instance]) -> None:
    await watched.route(table(*trio))
    master = master_of(watched.settings)
    assert master is not None
    for pid in (master, *(process.workers(master) or ())):
        os.kill(pid, signal.SIGKILL)
    await watched.until(lambda view: master_of(watched.settings) not in (None, master) and view.ok)
    assert (await ask(watched.port, "POST /", "{}")).status == 200


async def test_a_master_killed_again_in_the_middle_of_its_start_is_replaced_all_the_same(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(trio[0]))
    killed: set[int | None] = {None}
    for _ in range(3):
        master = await eventually(lambda: _other(master_of(watched.settings), killed), "a new pid", every=0.0005)
        os.kill(master, signal.SIGKILL)
        killed.add(master)
    await watched.until(lambda view: view.ok and master_of(watched.settings) not in killed, within=20)
    assert (await ask(watched.port, "POST /", "{}")).status == 200
    await eventually(lambda: not process.orphans(watched.dir), "the orphans have gone")


async def test_an_old_worker_that_does_not_retire_keeps_its_addresses_live(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(*trio))
    master = master_of(watched.settings)
    assert master is not None
    stuck = min(process.workers(master) or ())
    os.kill(stuck, signal.SIGSTOP)
    try:
        watched.gateway.want(table(trio[0]))
        view = await watched.until(lambda view: not view.ok, within=15)
        assert view.reason is not None
        assert f"kill [{stuck}]" in view.reason
        assert view.live == addresses(*trio)
    finally:
        os.kill(stuck, signal.SIGCONT)
    await watched.until(lambda view: view.ok and view.live == addresses(trio[0]))


async def test_a_port_that_a_stranger_has_is_said_with_its_name_and_taken_when_it_is_free(
    settings: NginxSettings, ports: range
) -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", ports[0]))
        stranger.listen()
        async with running(settings, ports[0]) as watched:
            view = await watched.until(lambda view: not view.ok)
            assert view.reason is not None
            assert f"127.0.0.1:{ports[0]} is taken by" in view.reason
            assert f"(pid {os.getpid()})" in view.reason
            stranger.close()
            await watched.until(lambda view: view.ok, within=15)


async def test_a_missing_binary_is_said_with_what_to_install(settings: NginxSettings, ports: range) -> None:
    async with running(replace(settings, binary="no-such-nginx"), ports[0]) as watched:
        view = await watched.until(lambda view: not view.ok)
        assert view.reason is not None
        assert 'nginx.binary = "no-such-nginx": no such program' in view.reason
        assert "apt-get install nginx" in view.reason


async def test_a_forced_reload_is_a_new_generation_and_is_proven(watched: Watched, trio: list[Instance]) -> None:
    before = await watched.route(table(*trio))
    assert await watched.gateway.reload() == (True, "")
    view = watched.gateway.view()
    assert view.generation == view.live_generation == before.generation + 1


async def test_logs_are_moved_aside_when_they_have_grown_and_nginx_writes_on(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(trio[0]))
    log = watched.dir / "access.log"
    await ask(watched.port, "POST /v1/before", "{}")
    await eventually(lambda: "/before" in log.read_text(), "the log is flushed")
    master = master_of(watched.settings)
    assert master is not None
    own.bound_logs(watched.dir, master, limit=10)
    await eventually(log.exists, "nginx has opened a new log")
    await ask(watched.port, "POST /v1/after", "{}")
    await eventually(lambda: "/after" in log.read_text(), "the new log is written")
    assert "/before" in (watched.dir / "access.log.1").read_text()


async def test_shutdown_ends_our_nginx_and_its_workers(settings: NginxSettings, ports: range) -> None:
    gateway = Gateway(settings, lambda: None)
    await gateway.start()
    master = master_of(settings)
    assert master is not None
    workers = process.workers(master)
    assert workers
    await gateway.shutdown()
    assert all(not process.title(pid) for pid in (master, *workers))


async def test_mode_off_only_remembers(tmp_path: Path) -> None:
    gateway = Gateway(NginxSettings(dir=tmp_path / "nginx", mode="off"), lambda: None)
    await gateway.start()
    gateway.want(Routing())
    assert gateway.view().off
    assert await gateway.reload() == (False, 'nginx.mode is "off"')
    assert not (tmp_path / "nginx").exists()
    await gateway.close()


def _other(pid: int | None, than: set[int | None]) -> int | None:
    return None if pid in than else pid
