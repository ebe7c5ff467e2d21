"""An nginx of our own: a table that is wanted becomes one that is proven, and what requests see of it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hasupervisor.act.nginx import process
from hasupervisor.act.nginx.settings import NginxSettings
from tests.real.gatewaying import Instance, Watched, ask, master_of, refused, running, table
from tests.real.load import post_load
from tests.real.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_defect_is_logged")


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
        await eventually(lambda: not refused(ports[5]), "the stand-in listens")
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
    assert (await ask(watched.port, "GET /v1/anything")).json == {"name": "redirect"}


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

        await watched.gateway.close()  # as dead as SIGKILL for nginx: nobody answers on its socket
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
