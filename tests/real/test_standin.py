"""The stand-in and the load are measuring tools: what they say must be so."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from tests.real.dockerd import Engine
from tests.real.load import post_load
from tests.real.waiting import eventually


@pytest.fixture
async def server(
    standin_server: Path, port_range: Callable[[int], range]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    port = port_range(1)[0]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(standin_server), "me", env={"PORT": str(port), "SERVICE_S": "0.02", "SLOTS": "2"}
    )
    url = f"http://127.0.0.1:{port}"
    await eventually(lambda: answers(url))
    yield process, url
    if process.returncode is None:
        process.kill()
    await process.wait()


async def answers(url: str) -> bool:
    async with httpx.AsyncClient() as client:
        try:
            return (await client.get(f"{url}/health")).status_code == 200
        except httpx.TransportError:
            return False


async def in_flight(client: httpx.AsyncClient) -> int:
    return int((await client.get("/health")).json()["progress"]["in_flight"])


async def refuses(url: str) -> bool:
    return (await post_load(url, rate=100, seconds=0.01)).outcomes == {"refused": 1}


async def test_a_load_is_answered_in_full_by_a_standin_that_is_well(
    server: tuple[asyncio.subprocess.Process, str],
) -> None:
    result = await post_load(f"{server[1]}/", rate=40, seconds=1)
    assert (result.sent, result.ok, result.answered_by) == (40, 40, {"me": 40})
    assert 0.02 <= result.slowest < 1


@pytest.mark.parametrize(
    ("mode", "outcome"), [("err", "500"), ("overload", "503"), ("reset", "empty"), ("refuse", "refused")]
)
async def test_a_load_counts_what_a_standin_does_wrong(
    server: tuple[asyncio.subprocess.Process, str], mode: str, outcome: str
) -> None:
    async with httpx.AsyncClient() as client:
        await client.post(f"{server[1]}/standin", json={"mode": mode, "for_s": 30})
    result = await post_load(server[1], rate=20, seconds=0.5)
    assert (result.outcomes, len(result.failures)) == ({outcome: 10}, 10)


async def test_a_hung_standin_accepts_and_never_answers_until_it_is_killed(
    server: tuple[asyncio.subprocess.Process, str],
) -> None:
    process, url = server
    async with httpx.AsyncClient() as client:
        await client.post(f"{url}/standin", json={"mode": "hang"})
    process.terminate()  # it does not hear this
    result = await post_load(url, rate=10, seconds=0.3, timeout=0.5)
    assert result.outcomes == {"timeout": 3}
    process.kill()
    assert await process.wait() == -9


async def test_progress_stands_still_in_a_standin_that_is_stalled(
    server: tuple[asyncio.subprocess.Process, str],
) -> None:
    async with httpx.AsyncClient(base_url=server[1]) as client:
        await client.post("/standin", json={"mode": "stall"})
        asked = asyncio.create_task(client.post("/", json={"prompt": "hi"}))
        await eventually(lambda: in_flight(client))
        first = (await client.get("/health")).json()["progress"]
        second = (await client.get("/health")).json()["progress"]
        assert second["tokens"] == first["tokens"]
        assert second["step_running_s"] > 0
        await client.post("/standin", json={"mode": "ok"})
        assert (await asked).json()["response"] == "me answers: hi"


async def test_a_standin_answers_what_is_in_flight_after_sigterm_and_takes_nothing_new(
    server: tuple[asyncio.subprocess.Process, str],
) -> None:
    process, url = server
    async with httpx.AsyncClient(base_url=url) as client:
        asked = asyncio.create_task(client.post("/", json={"prompt": "sleep 0.5"}))
        await eventually(lambda: in_flight(client))
        process.terminate()
        await eventually(lambda: refuses(url))
        assert (await asked).status_code == 200
    assert await process.wait() == 0


async def test_a_stream_arrives_in_chunks_and_ends_with_done(server: tuple[asyncio.subprocess.Process, str]) -> None:
    body = {"messages": [{"role": "user", "content": "你好"}], "stream": True, "n_chunks": 4}
    async with (
        httpx.AsyncClient(base_url=server[1]) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        events = [line async for line in answer.aiter_lines() if line]
    assert len(events) == 5
    assert events[-1] == "data: [DONE]"


async def test_the_image_serves_in_a_container_and_says_who_it_is(engine: Engine, standin_image: str) -> None:
    with engine.client() as client:
        container = client.containers.run(standin_image, detach=True, environment={"HOST": "0.0.0.0", "NAME": "boxed"})
        try:
            container.reload()
            url = f"http://{container.attrs['NetworkSettings']['IPAddress']}:8000"
            await eventually(lambda: answers(url))
            assert (await post_load(url, rate=20, seconds=0.5)).answered_by == {"boxed": 10}
        finally:
            container.remove(force=True, v=True)
