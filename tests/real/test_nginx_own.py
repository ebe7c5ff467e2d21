"""An nginx of our own: a table that is wanted becomes one that is proven, whatever happens to files and processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hasupervisor.act.nginx import own, process
from hasupervisor.act.nginx.gateway import Gateway
from hasupervisor.act.nginx.render import read_upstream
from hasupervisor.act.nginx.settings import NginxSettings
from hasupervisor.model import Routing
from tests.real.gatewaying import Instance, Watched, addresses, ask, running, table
from tests.real.load import post_load
from tests.real.waiting import eventually


@pytest.fixture(autouse=True)
def no_defect_is_logged(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    logged = "".join(capsys.readouterr())
    assert "BUG" not in logged, logged
    assert "Traceback" not in logged, logged


@pytest.fixture
def ports(port_range: Callable[[int], range]) -> range:
    return port_range(8)


@pytest.fixture
def settings(tmp_path: Path, ports: range) -> NginxSettings:
    return NginxSettings(
        dir=tmp_path / "nginx",
        mode="own",
        listen=f"127.0.0.1:{ports[0]}",
        room=f"127.0.0.1:{ports[1]}",
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


def master_of(settings: NginxSettings) -> int | None:
    return process.read_pid(settings.dir / "nginx.pid")


# --- who is routed ----------------------------------------------------------------------------------------------------


async def test_with_nobody_a_request_is_told_503_with_retry_after_and_the_file_is_valid(watched: Watched) -> None:
    reply = await ask(watched.port, "POST /", "{}")
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    assert reply.headers["content-type"] == "application/json"
    assert reply.json == {"error": {"message": "no instance serves now", "type": "unavailable"}}
    assert (await watched.gateway.test())[0]
    assert "server 127.0.0.1:9 down;" in watched.upstream


async def test_when_the_last_one_leaves_the_others_stand_as_down_and_requests_are_told_503(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(*trio[:2]))
    await watched.route(table(others=tuple(trio[:2])))
    reply = await ask(watched.port, "POST /v1/chat/completions", "{}")
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    assert watched.upstream.count(" down; # chatglm-0") == 2
    assert (await watched.gateway.test())[0]


async def test_a_routed_instance_gets_the_request_as_it_was_sent(watched: Watched, trio: list[Instance]) -> None:
    view = await watched.route(table(trio[0]))
    assert view.servers == 1
    reply = await ask(watched.port, "POST /", '{"prompt": "你好"}')
    assert reply.status == 200
    assert reply.json == {"name": "chatglm-01", "body": '{"prompt": "你好"}'}


async def test_an_address_is_live_until_no_worker_sends_requests_there_any_more(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(*trio))
    stop = asyncio.Event()
    load = asyncio.create_task(post_load(f"http://127.0.0.1:{watched.port}/", 200, 30, until=stop))
    try:
        for leaving in (trio[0], trio[1]):
            await eventually(lambda one=leaving: one.taken > 20, "requests reach it")
            watched.views.clear()
            staying = [instance for instance in trio if instance is not leaving]
            await watched.route(table(*staying))
            gone_at = next(at for at, view in watched.views if leaving.route.address not in view.live)
            before = staying[0].taken
            await eventually(lambda one=staying[0], was=before: one.taken > was + 40, "requests go on")
            # A request that an old worker had begun may arrive with the event loop's delay, never by a new choice.
            assert leaving.last_taken < gone_at + 0.02
            await watched.route(table(*trio))
    finally:
        stop.set()
        result = await load
    assert not result.failures, str(result)


async def test_fifty_reloads_under_load_fail_no_request(watched: Watched, trio: list[Instance]) -> None:
    for instance in trio:
        instance.service_s = 0.03
    await watched.route(table(*trio))
    stop = asyncio.Event()
    load = asyncio.create_task(post_load(f"http://127.0.0.1:{watched.port}/", 100, 60, until=stop))
    try:
        for number in range(50):
            # One leaves, which is never batched; then another one leaves and the first comes back.
            await watched.route(table(*(instance for instance in trio if instance is not trio[number % 3])))
    finally:
        stop.set()
        result = await load
    assert result.sent > 300
    assert not result.failures, str(result)
    assert watched.gateway.view().generation >= 52
    master = master_of(watched.settings)
    assert master is not None
    await eventually(lambda: len(process.workers(master) or ()) == 2, "two workers remain")


async def test_a_burst_of_twenty_tables_is_one_or_two_reloads(watched: Watched, ports: range) -> None:
    crowd = [Instance(ports[2] + number, f"chatglm-{number:02}") for number in range(20)]
    before = watched.gateway.view().generation
    for count in range(1, 21):
        watched.gateway.want(table(*crowd[:count]))
        await asyncio.sleep(0)
    view = await watched.route(table(*crowd))
    assert view.servers == 20
    assert view.generation - before <= 2


async def test_a_table_that_says_the_same_in_another_order_is_no_reload(watched: Watched, trio: list[Instance]) -> None:
    view = await watched.route(table(*trio))
    watched.gateway.want(table(*reversed(trio)))
    watched.gateway.want(table(*trio))
    watched.gateway.want(table(*trio, others=(Instance(1, "chatglm-04"),)))  # known, not routed: no reload of its own
    ok, _ = await watched.gateway.test()  # the background task has had its turn
    assert ok
    assert watched.gateway.view().generation == view.generation


# --- what a request sees ----------------------------------------------------------------------------------------------


async def test_an_instance_killed_at_work_costs_a_post_nothing(
    watched: Watched, trio: list[Instance], ports: range, standin_server: Path
) -> None:
    environment = dict(os.environ, HOST="127.0.0.1", PORT=str(ports[5]), SERVICE_S="0.3")
    victim = await asyncio.create_subprocess_exec(sys.executable, str(standin_server), "victim", env=environment)
    try:
        await eventually(lambda: not _refused(ports[5]), "the stand-in listens")
        await watched.route(table(trio[0], Instance(ports[5], "victim")))
        load = asyncio.create_task(post_load(f"http://127.0.0.1:{watched.port}/", 40, 3))
        await eventually(lambda: trio[0].taken > 20, "requests run")
        victim.kill()
        result = await load
        assert not result.failures, str(result)
        assert result.answered_by["victim"] > 0
    finally:
        if victim.returncode is None:
            victim.kill()
        await victim.wait()


async def test_a_request_on_which_every_instance_fails_is_told_so_in_other_words(
    watched: Watched, trio: list[Instance]
) -> None:
    for instance in trio:
        instance.how = "cut"
    await watched.route(table(*trio))
    reply = await ask(watched.port, "POST /", "{}")
    assert reply.status == 502
    assert "retry-after" not in reply.headers
    assert '"type":"upstream_failed"' in reply.body
    assert sum(instance.taken for instance in trio) == 3


async def test_tries_bounds_how_many_instances_one_request_may_kill(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    for instance in trio:
        instance.how = "cut"
    settings = replace(settings, tries=2)
    async with running(settings, ports[0]) as watched:
        await watched.route(table(*trio))
        assert (await ask(watched.port, "POST /", "{}")).status == 502
        assert sum(instance.taken for instance in trio) == 2


async def test_a_routed_but_closed_instance_is_told_as_out_of_reach(watched: Watched, ports: range) -> None:
    await watched.route(table(Instance(ports[6], "chatglm-01")))
    reply = await ask(watched.port, "POST /", "{}")
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    assert "no instance can be reached now" in reply.body


async def test_an_overloaded_instance_is_passed_over_and_its_own_words_reach_the_client_when_all_are(
    watched: Watched, trio: list[Instance]
) -> None:
    trio[0].how = "busy"
    await watched.route(table(*trio[:2]))
    replies = [await ask(watched.port, "POST /", "{}") for _ in range(6)]
    assert {reply.status for reply in replies} == {200}
    assert trio[0].taken > 0
    trio[1].how = "busy"
    reply = await ask(watched.port, "POST /", "{}")
    assert (reply.status, reply.json) == (503, {"error": "busy"})


async def test_beyond_max_in_flight_the_gateway_says_503_with_retry_after(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    trio[0].how = "slow"
    settings = replace(settings, max_in_flight=1)
    async with running(settings, ports[0]) as watched:
        await watched.route(table(trio[0]))
        first = asyncio.create_task(ask(watched.port, "POST /", "{}"))
        await eventually(lambda: trio[0].taken == 1, "the first is in flight")
        second = await ask(watched.port, "POST /", "{}")
        assert (second.status, second.headers["retry-after"]) == (503, "5")
        assert '"type":"overloaded"' in second.body
        trio[0].release.set()
        assert (await first).status == 200


async def test_tokens_leave_at_once_and_a_stream_cut_short_is_seen_by_the_client(
    watched: Watched, ports: range, trio: list[Instance]
) -> None:
    trio[0].how = "stream"
    await watched.route(table(trio[0]))
    reader, writer = await asyncio.open_connection("127.0.0.1", watched.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    async with asyncio.timeout(5):
        assert b"data: first" in await reader.readuntil(b"first")  # while the instance is still at work
        trio[0].release.set()
        assert (await reader.read(-1)).endswith(b"0\r\n\r\n")
    writer.close()

    trio[1].how = "torn"
    await watched.route(table(trio[1]))
    stream = asyncio.create_task(ask(watched.port, "POST /", "{}"))
    await eventually(lambda: trio[1].taken == 1, "the stream has begun")
    trio[1].release.set()
    assert not (await stream).whole


async def test_an_instance_cannot_send_a_request_to_another_location(watched: Watched, trio: list[Instance]) -> None:
    trio[0].how = "redirect"
    await watched.route(table(trio[0]))
    assert (await ask(watched.port, "GET /anything")).json == {"name": "redirect"}


async def test_the_generation_is_told_to_loopback_alone(watched: Watched) -> None:
    reply = await ask(watched.port, "GET /ha/generation")
    assert (reply.status, reply.body) == (200, f"{watched.gateway.view().generation}\n")
    # Linux takes all of 127.0.0.0/8 for its own: this is a client from anywhere else.
    assert (await ask(watched.port, "GET /ha/generation", source="127.0.0.2")).status == 403


async def test_health_tells_the_truth_with_the_daemon_alive_and_dead(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    async with running(settings, ports[0]) as watched:
        reply = await ask(watched.port, "GET /health")
        assert (reply.status, reply.json) == (503, {"status": "unhealthy", "serving": 0})
        await watched.route(table(*trio[:2]))
        reply = await ask(watched.port, "GET /health")
        assert (reply.status, reply.json) == (200, {"status": "healthy", "serving": 2})
        assert {instance.taken for instance in trio} == {0}

        await watched.gateway.close()  # as dead as SIGKILL for nginx: nobody listens on nginx.room
        reply = await ask(watched.port, "GET /health")
        assert reply.status == 200
        assert reply.json == {"status": "healthy", "serving": 2, "daemon": "not answering"}
        for instance in trio:
            await instance.stop()
        reply = await ask(watched.port, "GET /health")
        assert (reply.status, reply.json["serving"]) == (503, 0)


async def test_each_request_is_one_line_of_json_at_the_log_socket(
    settings: NginxSettings, ports: range, trio: list[Instance], tmp_path: Path
) -> None:
    path = tmp_path / "access.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.setblocking(False)
        async with running(replace(settings, access_log_socket=path), ports[0]) as watched:
            await watched.route(table(trio[0]))
            await ask(watched.port, "POST /v1/chat/completions?a=1", "{}")
            async with asyncio.timeout(5):
                line = await asyncio.get_running_loop().sock_recv(receiver, 65536)
            head, _, told = line.decode().partition("ha: ")
            assert "<190>" in head
            said = json.loads(told)
            assert (said["st"], said["m"], said["u"]) == (200, "POST", "/v1/chat/completions")
            assert said["ua"] == str(trio[0].route.address)
            assert said["gen"] == str(watched.gateway.view().generation)
            # The same line is in the file, as the truth about lost datagrams.
            log = watched.dir / "access.log"
            await eventually(lambda: told in log.read_text(), "the file log is flushed")


# --- what happens to files --------------------------------------------------------------------------------------------


async def test_a_broken_file_stops_every_reload_until_it_is_mended_by_hand(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(*trio))
    live, before = watched.upstream, watched.gateway.view().generation
    broken = watched.dir / "conf.d" / "mine.conf"
    broken.write_text("server {\n    bogus on;\n}\n")
    view = await watched.until(lambda view: not view.ok)  # noticed although no routing has changed
    assert view.reason == f'unknown directive "bogus" in {broken}:2'

    watched.gateway.want(table(*trio[:2]))
    await watched.until(lambda view: not view.ok and view.reason is not None)
    ok, said = await watched.gateway.reload()
    assert (ok, said) == (False, view.reason)
    assert watched.upstream == live
    assert watched.gateway.view().live == addresses(*trio)
    assert (await ask(watched.port, "GET /ha/generation")).body == f"{before}\n"

    broken.unlink()
    view = await watched.until(lambda view: view.ok and view.live == addresses(*trio[:2]))
    assert view.generation == before + 1


async def test_a_broken_file_of_ours_is_the_same_until_a_person_asks_for_it_to_be_written_anew(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(*trio))
    gateway_conf = watched.dir / "gateway.conf"
    good = gateway_conf.read_text()
    gateway_conf.write_text(good + "bogus;\n")
    view = await watched.until(lambda view: not view.ok)
    assert view.reason is not None
    assert str(gateway_conf) in view.reason
    assert gateway_conf.read_text() == good + "bogus;\n"
    ok, said = await watched.gateway.reload()
    assert ok, said
    assert gateway_conf.read_text() == good
    await watched.until(lambda view: view.ok)


async def test_what_a_person_adds_to_our_files_stays_while_the_routing_changes(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(trio[0]))
    gateway_conf = watched.dir / "gateway.conf"
    mine = gateway_conf.read_text().replace("client_max_body_size 64m", "client_max_body_size 128m")
    gateway_conf.write_text(mine)
    await watched.route(table(*trio))
    assert gateway_conf.read_text() == mine


async def test_an_upstream_file_edited_by_hand_is_replaced(watched: Watched, trio: list[Instance]) -> None:
    view = await watched.route(table(*trio))
    (watched.dir / "upstream.conf").write_text("not nginx at all {{{\n")
    after = await watched.until(lambda now: now.ok and now.generation > view.generation and watched.proven(now))
    assert after.live == addresses(*trio)
    assert read_upstream(watched.upstream).routed == addresses(*trio)


async def test_garbage_left_on_disk_does_not_stop_a_start(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    settings.dir.mkdir()
    (settings.dir / "upstream.conf").write_bytes(b"geo $ha_generation { default 41; }\nupstream ha {\n  ser\xff\x00{")
    (settings.dir / "gateway.conf").write_text("}}}")
    async with running(settings, ports[0]) as watched:
        assert watched.gateway.on_disk() == frozenset()
        view = await watched.route(table(trio[0]))
        assert view.generation > 41
        assert (await ask(watched.port, "POST /", "{}")).status == 200


async def test_a_file_that_cannot_be_written_is_said_and_tried_again(watched: Watched, trio: list[Instance]) -> None:
    await watched.route(table(*trio))
    live = watched.upstream
    blocker = watched.dir / ".upstream.conf.new"  # where the new file is made before it takes the old one's place
    blocker.mkdir()
    watched.gateway.want(table(trio[0]))
    view = await watched.until(lambda view: not view.ok)
    assert view.reason == f"cannot write {blocker}: Is a directory"
    assert watched.upstream == live
    assert view.live == addresses(*trio)
    blocker.rmdir()
    await watched.until(lambda view: view.ok and view.live == addresses(trio[0]))


async def test_a_file_in_place_of_the_folder_is_said_and_recovered_from(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    settings.dir.write_text("in the way")
    async with running(settings, ports[0]) as watched:
        view = await watched.until(lambda view: not view.ok)
        assert view.reason == f"cannot write {settings.dir}: File exists"
        watched.gateway.want(table(trio[0]))
        settings.dir.unlink()
        await watched.until(lambda view: view.ok and view.live == addresses(trio[0]))


async def test_other_settings_are_taken_over_while_it_runs(
    watched: Watched, ports: range, trio: list[Instance]
) -> None:
    await watched.route(table(*trio))
    moved = replace(watched.settings, listen=f"127.0.0.1:{ports[7]}", tries=2)
    watched.gateway.reconfigure(moved)
    await eventually(lambda: not _refused(ports[7]), "the new port answers")
    await watched.until(lambda view: view.ok and watched.proven(view))
    assert (await ask(ports[7], "POST /", "{}")).status == 200
    assert "proxy_next_upstream_tries 2;" in watched.gateway.files()["gateway.conf"]


# --- what happens to processes ----------------------------------------------------------------------------------------


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
    await ask(watched.port, "POST /before", "{}")
    await eventually(lambda: "/before" in log.read_text(), "the log is flushed")
    master = master_of(watched.settings)
    assert master is not None
    own.bound_logs(watched.dir, master, limit=10)
    await eventually(log.exists, "nginx has opened a new log")
    await ask(watched.port, "POST /after", "{}")
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


def _refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0
