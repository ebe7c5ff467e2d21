"""The waiting room with real nginx: nobody fails while nobody serves, for as long as `hold` says."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from hasupervisor.act.nginx.settings import NginxSettings
from tests.real.gatewaying import Instance, Reply, Watched, ask, running, table
from tests.real.waiting import eventually


@pytest.fixture
def ports(port_range: Callable[[int], range]) -> range:
    return port_range(6)


@pytest.fixture
def settings(tmp_path: Path, ports: range) -> NginxSettings:
    return NginxSettings(
        dir=tmp_path / "nginx",
        mode="own",
        listen=f"127.0.0.1:{ports[0]}",
        hold=20.0,
        hold_max=8,
    )


@pytest.fixture
async def watched(settings: NginxSettings, ports: range) -> AsyncIterator[Watched]:
    async with running(settings, ports[0]) as watched:
        yield watched


@pytest.fixture
async def pair(ports: range) -> AsyncIterator[tuple[Instance, Instance]]:
    one, two = Instance(ports[2], "chatglm-01"), Instance(ports[3], "chatglm-02")
    yield one, two
    await one.stop()
    await two.stop()


async def held(watched: Watched, count: int) -> None:
    await eventually(lambda: watched.gateway.view().held == count or None, f"{count} held requests", 10.0, 0.01)


def post(watched: Watched, body: str, target: str = "POST /v1/chat/completions?x=1") -> asyncio.Task[Reply]:
    return asyncio.create_task(ask(watched.port, target, body, deadline=30.0))


async def prove(watched: Watched, *instances: Instance) -> None:
    """What the loop says once these have answered a probe that began now."""
    now = time.monotonic()
    await asyncio.sleep(0)
    watched.gateway.prove({instance.route.address: now for instance in instances})


async def test_what_comes_while_nobody_serves_is_answered_by_the_first_that_is_proven_with_its_body_unchanged(
    watched: Watched, pair: tuple[Instance, Instance]
) -> None:
    await watched.route(table(others=pair))
    bodies = ["你好 " + "x" * size for size in (0, 10, 5_000, 300_000)]
    asked = [post(watched, body) for body in bodies]
    await held(watched, 4)
    await pair[0].start()
    await prove(watched, pair[0])
    replies = await asyncio.gather(*asked)
    assert [reply.status for reply in replies] == [200] * 4
    assert [reply.json["body"] for reply in replies] == bodies
    assert pair[0].taken == 4, "a request was answered more than once"
    view = watched.gateway.view()
    assert (view.held, view.held_total, view.released_total, view.refused_total) == (0, 4, 4, 0)


async def test_an_instance_that_refuses_although_it_is_routed_costs_only_the_wait_for_another(
    watched: Watched, pair: tuple[Instance, Instance]
) -> None:
    await watched.route(table(pair[0]))  # routed, and nobody listens there
    asked = post(watched, "hello")
    await held(watched, 1)
    await pair[1].start()
    await prove(watched, pair[1])
    assert (await asked).json["name"] == "chatglm-02", "an address that nginx's own list has not is reached too"


async def test_one_that_falls_over_a_held_request_passes_it_on_and_a_query_of_death_is_refused_in_the_end(
    watched: Watched, pair: tuple[Instance, Instance]
) -> None:
    await watched.route(table(others=pair))
    for instance in pair:
        instance.how = "cut"
        await instance.start()
    asked = post(watched, "deadly")
    await held(watched, 1)
    for _ in range(3):
        taken = pair[0].taken + pair[1].taken
        await prove(watched, *pair)
        await eventually(lambda seen=taken: pair[0].taken + pair[1].taken > seen or None, "the next try", 5.0, 0.01)
        if pair[0].taken + pair[1].taken < 3:
            await held(watched, 1)
    reply = await asked
    assert (reply.status, pair[0].taken + pair[1].taken) == (502, 3)
    assert '"type":"upstream_failed"' in reply.body


async def test_one_that_is_full_gives_the_request_back_to_the_room(
    watched: Watched, pair: tuple[Instance, Instance]
) -> None:
    await watched.route(table(others=pair))
    pair[0].how = "busy"
    await pair[0].start()
    asked = post(watched, "patient")
    await held(watched, 1)
    await prove(watched, pair[0])
    await eventually(lambda: pair[0].taken == 1 or None, "the full one is asked", 5.0, 0.01)
    await held(watched, 1)
    pair[0].how = "ok"
    await prove(watched, pair[0])
    assert (await asked).status == 200


async def test_more_than_hold_max_are_told_at_once(watched: Watched, pair: tuple[Instance, Instance]) -> None:
    await watched.route(table(others=pair))
    waiting = [post(watched, "first") for _ in range(8)]
    await held(watched, 8)
    late = await ask(watched.port, "POST /", "one too many")
    assert (late.status, late.headers["retry-after"]) == (503, "5")
    assert "too many requests wait" in late.body
    await pair[0].start()
    await prove(watched, pair[0])
    assert {reply.status for reply in await asyncio.gather(*waiting)} == {200}


async def test_a_client_that_leaves_gives_its_place_back(watched: Watched, pair: tuple[Instance, Instance]) -> None:
    await watched.route(table(others=pair))
    _, writer = await asyncio.open_connection("127.0.0.1", watched.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{}")
    await held(watched, 1)
    writer.close()
    await held(watched, 0)


async def test_after_the_hold_a_request_is_told_503_with_retry_after(
    settings: NginxSettings, ports: range, pair: tuple[Instance, Instance]
) -> None:
    async with running(dataclasses.replace(settings, hold=0.5), ports[0]) as watched:
        await watched.route(table(others=pair))
        reply = await ask(watched.port, "POST /", "{}")
        assert (reply.status, reply.headers["retry-after"]) == (503, "5")
        assert '"type":"unavailable"' in reply.body
        assert watched.gateway.view().refused_total == 1


async def test_without_a_daemon_nobody_is_held(watched: Watched, pair: tuple[Instance, Instance]) -> None:
    await watched.route(table(others=pair))
    await watched.gateway.close()
    reply = await ask(watched.port, "POST /", "{}")
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    assert "the daemon that would hold the request does not answer" in reply.body


async def test_at_the_limit_of_requests_in_flight_a_client_is_told_at_once_and_not_held(
    settings: NginxSettings, ports: range, pair: tuple[Instance, Instance]
) -> None:
    async with running(dataclasses.replace(settings, max_in_flight=1), ports[0]) as watched:
        pair[0].how = "slow"
        await pair[0].start()
        await watched.route(table(pair[0]))
        first = post(watched, "slow one")
        await eventually(lambda: pair[0].taken == 1 or None, "the first is at work", 5.0, 0.01)
        reply = await ask(watched.port, "POST /", "{}")
        assert (reply.status, reply.headers["retry-after"]) == (503, "5")
        assert '"type":"overloaded"' in reply.body
        pair[0].release.set()
        assert (await first).status == 200
        assert watched.gateway.view().held_total == 0
