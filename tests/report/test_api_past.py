"""History and logs by the control socket: lines that go on while one listens, and how they end."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from hasupervisor.report.desk import Unavailable
from tests.report import schema
from tests.report.clerk import Clerk, Line
from tests.report.example import WALL
from tests.report.schema import conforms
from tests.report.serving import lines_of, problem, served, until


async def test_the_history_is_newline_delimited_json_the_oldest_first() -> None:
    async with served() as ha:
        for number in range(60):
            ha.clerk.add(f"line {number}")
        answer = await ha.client.get("/v1/history")
        assert answer.headers["content-type"] == "application/x-ndjson"
        found = lines_of(answer.text)
        assert [line["sentence"] for line in found] == [f"line {n}" for n in range(10, 60)]
        assert all(conforms(line, schema.ENTRY) for line in found)
        few = lines_of((await ha.client.get(f"/v1/history?n=500&since={WALL + 57}")).text)
        assert [line["sentence"] for line in few] == ["line 57", "line 58", "line 59"]
        assert (await ha.client.get("/v1/history?n=0")).text == ""


async def test_a_long_history_leaves_the_daemon_its_turns() -> None:
    async with served() as ha:
        ha.clerk.lines = [Line(n, WALL, "chatglm-01", "state", "x" * 50, "chatglm-ha") for n in range(20_000)]
        turns = 0

        async def cycle() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        cycles = asyncio.create_task(cycle())
        answer = await ha.client.get("/v1/history?n=20000")
        cycles.cancel()
        assert answer.text.count("\n") == 20_000
        assert turns > 200


async def test_a_followed_history_goes_on_and_its_follower_ends_when_the_client_leaves() -> None:
    async with served() as ha:
        ha.clerk.add("before")
        async with ha.client.stream("GET", "/v1/history?follow=1&n=5") as answer:
            lines = answer.aiter_lines()
            assert "before" in await anext(lines)
            for number in range(5):
                ha.clerk.add(f"after {number}")
                assert f"after {number}" in await anext(lines)
            assert ha.clerk.following == 1
        await until(lambda: ha.clerk.following == 0, "the follower has ended")


async def test_a_followed_stream_answers_before_its_first_line() -> None:
    async with served() as ha, asyncio.timeout(5), ha.client.stream("GET", "/v1/history?follow=1&n=0") as answer:
        assert answer.status_code == 200
        ha.clerk.add("first")
        assert "first" in await anext(answer.aiter_lines())


async def test_logs_are_lines_of_text() -> None:
    async with served(Clerk(output=["加载模型", "odd \udcff", "ready"])) as ha:
        answer = await ha.client.get("/v1/instances/chatglm-01/logs")
        assert answer.headers["content-type"] == "text/plain"
        assert answer.content.decode() == "加载模型\nodd ?\nready\n"
        assert (await ha.client.get("/v1/instances/chatglm-01/logs?n=1")).text == "ready\n"
        async with ha.client.stream("GET", "/v1/instances/chatglm-01/logs?n=1&follow=true") as followed:
            lines = followed.aiter_lines()
            assert await anext(lines) == "ready"
            ha.clerk.output.append("POST / 200")
            ha.clerk.move()
            assert await anext(lines) == "POST / 200"
        await until(lambda: ha.clerk.following == 0, "the follower has ended")


async def test_the_last_words_of_a_failure_are_logs_too() -> None:
    async with served() as ha:
        assert (
            await ha.client.get("/v1/instances/chatglm-02/logs?last_failure=1")
        ).text == "loading …\nout of memory\n"
        assert (await ha.client.get("/v1/instances/chatglm-02/logs?last_failure=1&n=1")).text == "out of memory\n"
        found = await problem(await ha.client.get("/v1/instances/chatglm-01/logs?last_failure=1"), 404)
        assert (found["detail"], found["hint"]) == ("chatglm-01 has not failed", "chatglm-hactl logs chatglm-01")
        await problem(await ha.client.get("/v1/instances/chatglm-02/logs?last_failure=1&follow=1"), 400)


async def test_a_stream_that_cannot_begin_is_a_problem() -> None:
    async with served(Clerk()) as ha:
        ha.clerk.add("x")
        original = ha.clerk.status
        ha.clerk.fail = Unavailable("cannot reach dockerd: no answer in 5 s", "systemctl status docker")
        ha.clerk.status = lambda: ha.clerk.snapshot  # type: ignore[method-assign]
        found = await problem(await ha.client.get("/v1/instances/chatglm-01/logs?follow=1"), 503)
        assert found["hint"] == "systemctl status docker"
        ha.clerk.status = original  # type: ignore[method-assign]


@pytest.mark.parametrize("error", [Unavailable("dockerd is gone"), ZeroDivisionError("oh")])
async def test_a_stream_that_breaks_is_cut_so_that_the_client_sees_it(error: Exception) -> None:
    with capture_logs() as logged:
        async with served(Clerk(output=["one"])) as ha:
            reader, writer = await asyncio.open_unix_connection(ha.path)
            writer.write(b"GET /v1/instances/chatglm-01/logs?follow=1 HTTP/1.1\r\nHost: ha\r\n\r\n")
            begun = await asyncio.wait_for(reader.readuntil(b"one\n\r\n"), 10)
            assert begun.startswith(b"HTTP/1.1 200 ")
            ha.clerk.fail = error
            ha.clerk.move()
            rest = await asyncio.wait_for(reader.read(), 10)
            assert b"0\r\n\r\n" not in rest, "the chunked answer looks whole"
            writer.close()
    expected = "a stream has ended early" if isinstance(error, Unavailable) else "BUG: a stream failed"
    assert [line["event"] for line in logged] == [expected]
