"""Whatever comes in on the control socket, a problem goes out, nothing counts as a defect, and the next is served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from hasupervisor.report.connection import Limits
from tests.report import schema
from tests.report.cards import WITH_GPUS
from tests.report.clerk import Clerk
from tests.report.schema import conforms
from tests.report.serving import Served, rest_of, served, until

TARGETS = [
    "/v1/scale",
    "/v1/restart",
    "/v1/autoscale",
    "/v1/pause",
    "/v1/resume",
    "/v1/instances/chatglm-01/drain",
    "/v1/gpus/0/quarantine",
    "/v1/nginx/test",
    "/v1/config/reload",
]


@asynccontextmanager
async def quiet(limits: Limits | None = None) -> AsyncIterator[Served]:
    """A served socket that has logged nothing at the end, and still answers."""
    with capture_logs() as logged:
        async with served(Clerk(snapshot=WITH_GPUS), limits) as ha:
            yield ha
            assert (await ha.client.get("/v1/status")).status_code == 200
        assert logged == []


def parse(raw: bytes) -> tuple[int, dict[str, Any]]:
    """Status and problem document of the first answer."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert headers["content-type"] == "application/problem+json", raw
    found = json.loads(body[: int(headers["content-length"])])
    assert conforms(found, schema.PROBLEM)
    status = int(first.split()[1])
    assert found["status"] == status
    return status, found


@pytest.mark.parametrize(
    ("target", "body", "problems"),
    [
        ("/v1/scale", b"", ["n: is missing"]),
        ("/v1/scale", b"{", ["the body is not JSON: EOF while parsing an object at line 1 column 1"]),
        ("/v1/scale", b"[]", ["the body should be a JSON object"]),
        ("/v1/scale", b"null", ["the body should be a JSON object"]),
        ("/v1/scale", b'{"n": "4"}', ['n: should be a whole number, not "4"']),
        ("/v1/scale", b'{"n": true}', ["n: should be a whole number, not true"]),
        ("/v1/scale", b'{"n": 1.0}', ["n: should be a whole number, not 1.0"]),
        ("/v1/scale", b'{"n": -1}', ["n: should be greater than or equal to 0, not -1"]),
        ("/v1/scale", b'{"n": 4, "forse": true}', ["forse: unknown key; did you mean force?"]),
        (
            "/v1/scale",
            b'{"wanted": 4}',
            ["n: is missing", "wanted: unknown key; known are n, force, dry_run"],
        ),
        ("/v1/scale", b'{"n": 2, "force": 1}', ["force: should be a valid boolean, not 1"]),
        ("/v1/pause", b'{"for_s": 0}', ["for_s: should be greater than 0, not 0"]),
        ("/v1/pause", b'{"for_s": NaN}', ["for_s: should be a finite number, not NaN"]),
        ("/v1/pause", b'{"for_s": "1h"}', ['for_s: should be a valid number, not "1h"']),
        ("/v1/resume", b'{"force": true}', ["force: unknown key; this request takes none"]),
        ("/v1/autoscale", b'{"enabled": "yes"}', ['enabled: should be a valid boolean, not "yes"']),
        ("/v1/instances/chatglm-01/undrain", b'{"a": 1}', ["a: unknown key; this request takes none"]),
    ],
)
async def test_a_body_that_is_not_understood_says_what_was_meant(target: str, body: bytes, problems: list[str]) -> None:
    async with quiet() as ha:
        answer = await ha.client.post(target, content=body)
        assert answer.status_code == 400
        found = answer.json()
        assert conforms(found, schema.PROBLEM)
        assert found["detail"] == "; ".join(problems)
        assert found["problems"] == (problems if len(problems) > 1 else [])
        assert ha.clerk.told == []


@pytest.mark.parametrize(
    ("target", "detail"),
    [
        ("/v1/status?nmae=x", "nmae: unknown key; did you mean name?"),
        ("/v1/status?name=chatglm-01&name=chatglm-02", "name: is given more than once"),
        ("/v1/version?x=1", "x: unknown key; this request takes none"),
        ("/v1/history?n=many", 'n: should be a whole number, unable to parse string as an integer, not "many"'),
        ("/v1/history?n=-1", 'n: should be greater than or equal to 0, not "-1"'),
        (
            "/v1/history?since=yesterday",
            'since: should be a valid number, unable to parse string as a number, not "yesterday"',
        ),
        ("/v1/history?since=nan", 'since: should be a finite number, not "nan"'),
        (
            "/v1/instances/chatglm-01/logs?follow=perhaps",
            'follow: should be a valid boolean, unable to interpret input, not "perhaps"',
        ),
        ("/v1/operations/op-7?watch=", 'watch: should be a valid boolean, unable to interpret input, not ""'),
    ],
)
async def test_a_query_that_is_not_understood_says_what_was_meant(target: str, detail: str) -> None:
    async with quiet() as ha:
        answer = await ha.client.get(target)
        assert (answer.status_code, answer.json()["detail"]) == (400, detail)


async def test_a_command_takes_no_query() -> None:
    async with quiet() as ha:
        answer = await ha.client.post("/v1/scale?n=4")
        assert (answer.status_code, answer.json()["detail"]) == (400, "n: unknown key; this request takes none")
        assert ha.clerk.told == []


@pytest.mark.parametrize(
    ("method", "target", "status", "detail"),
    [
        ("GET", "/", 404, "there is nothing at /"),
        ("GET", "/v1/statu", 404, "there is nothing at /v1/statu"),
        ("GET", "/v1/status/", 404, "there is nothing at /v1/status/"),
        ("GET", "/v1/instances//logs", 404, "there is nothing at /v1/instances//logs"),
        ("PUT", "/v1/status", 405, "/v1/status takes GET, not PUT"),
        ("HEAD", "/v1/status", 405, ""),
        ("GET", "/v1/scale", 405, "/v1/scale takes POST, not GET"),
        ("BREW", "/v1/operations/op-7", 405, "/v1/operations/op-7 takes GET, DELETE, not BREW"),
    ],
)
async def test_a_path_or_method_that_is_not_there_is_a_problem(
    method: str, target: str, status: int, detail: str
) -> None:
    async with quiet() as ha:
        answer = await ha.client.request(method, target)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        if method != "HEAD":
            assert conforms(answer.json(), schema.PROBLEM)
            assert answer.json()["detail"] == detail
        if status == 405:
            assert answer.headers["allow"] == detail.partition(" takes ")[2].partition(", not")[0] or method == "HEAD"


@pytest.mark.parametrize(
    "raw",
    [
        b"hello\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\n\r\n",  # no Host
        b"GET /v1/status HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v1 /status HTTP/1.1\r\nHost: ha\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,  # TLS
        b"GET / HTTP/1.1\r\nHost: ha\r\nX: " + b"a" * 300_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: ha\r\n\r\n",
        b"POST /v1/scale HTTP/1.1\r\nHost: ha\r\nContent-Length: many\r\n\r\n{}",
        b"POST /v1/scale HTTP/1.1\r\nHost: ha\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}   ",
        b"POST /v1/scale HTTP/1.1\r\nHost: ha\r\nTransfer-Encoding: gzip\r\n\r\n{}",
        b"POST /v1/scale HTTP/1.1\r\nHost: ha\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    ],
)
async def test_what_is_not_http_is_answered_with_a_problem_and_closed(raw: bytes) -> None:
    async with quiet() as ha:
        status, _ = parse(await ha.raw(raw))
        assert status in (400, 501)
        assert ha.clerk.told == []


async def test_a_body_beyond_64_kib_is_413_however_it_is_sent() -> None:
    async with quiet() as ha:
        large = b'{"n": 3' + b" " * 70_000 + b"}"
        answer = await ha.client.post("/v1/scale", content=large)
        assert answer.status_code == 413
        assert answer.json()["detail"] == "the body is longer than 65536 bytes"

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(70):
                yield b" " * 1000

        answer = await ha.client.post("/v1/scale", content=pieces())
        assert answer.status_code == 413
        fits = b'{"n": 3' + b" " * 65_000 + b"}"
        assert (await ha.client.post("/v1/scale", content=fits)).status_code == 202


async def test_a_body_without_end_is_cut_off() -> None:
    async with quiet(Limits(request=0.5)) as ha:
        reader, writer = await asyncio.open_unix_connection(ha.path)
        writer.write(b"POST /v1/scale HTTP/1.1\r\nHost: ha\r\nTransfer-Encoding: chunked\r\n\r\n")

        async def pour() -> None:
            while True:
                writer.write(b"400\r\n" + b" " * 1024 + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0)

        task = asyncio.create_task(pour())
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 413 ")
        await asyncio.wait([task], timeout=10)
        assert isinstance(task.exception(), ConnectionError)
        writer.close()


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /v1/sta",
        b"GET /v1/status HTTP/1.1\r\nHost: ha\r\n",
        b"POST /v1/scale HTTP/1.1\r\nHost: ha\r\nContent-Length: 9\r\n\r\n",
        b'POST /v1/scale HTTP/1.1\r\nHost: ha\r\nContent-Length: 9\r\n\r\n{"n":',
        b"GET /v1/version HTTP/1.1\r\nHost: ha\r\n\r\nGET /v1/sta",  # the second on a connection that is kept
    ],
)
async def test_a_request_that_arrives_drop_by_drop_is_given_up(beginning: bytes) -> None:
    async with quiet(Limits(request=0.5)) as ha:
        reader, writer = await asyncio.open_unix_connection(ha.path)
        writer.write(beginning)

        async def drip() -> None:
            while True:
                await asyncio.sleep(0.05)
                writer.write(b"x")

        task = asyncio.create_task(drip())
        answer = await rest_of(reader)
        task.cancel()
        writer.close()
        if b"1.1 200" in answer:
            answer = b"HTTP/1.1" + answer.split(b"HTTP/1.1")[2]
        status, found = parse(answer)
        assert status in (400, 408)  # the drops may have spoiled the head or the body by then
        if status == 408:
            assert found["detail"] == "the request has not arrived in 0.5 s"
        assert ha.clerk.told == []


async def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with quiet(Limits(request=0.3)) as ha:
        assert await ha.raw(b"") == b""


async def test_a_kept_connection_that_is_not_used_is_closed() -> None:
    async with quiet(Limits(idle=1)) as ha:
        answer = await ha.raw(b"GET /v1/version HTTP/1.1\r\nHost: ha\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("cut", [1, 20, 54, 61])
async def test_a_client_that_leaves_in_the_middle_of_its_request_is_forgotten(cut: int) -> None:
    request = b'POST /v1/scale HTTP/1.1\r\nHost: ha\r\nContent-Length: 8\r\n\r\n{"n": 4}'
    async with quiet() as ha:
        for _ in range(20):
            await ha.raw(request[:cut], then_close=True)
        assert ha.clerk.told == []


async def test_requests_on_one_connection_are_answered_in_their_order() -> None:
    async with quiet() as ha:
        one = b"GET /v1/%s HTTP/1.1\r\nHost: ha\r\n%s\r\n"
        raw = await ha.raw(
            one % (b"version", b"") + one % (b"nothing", b"") + one % (b"autoscale", b"Connection: close\r\n")
        )
        assert [part.split(b" ")[1] for part in raw.split(b"HTTP/1.1")[1:]] == [b"200", b"404", b"200"]


async def test_more_connections_than_there_is_room_for_are_turned_away_in_words() -> None:
    async with quiet(Limits(connections=5)) as ha:
        streams = [await asyncio.open_unix_connection(ha.path) for _ in range(5)]
        for _, writer in streams:
            writer.write(b"GET /v1/history?follow=1 HTTP/1.1\r\nHost: ha\r\n\r\n")
        await until(lambda: ha.clerk.following == 5, "five follow")
        status, found = parse(await ha.raw(b""))
        assert (status, found["detail"]) == (503, "5 connections are open already; close some, or try again")
        for _, writer in streams:
            writer.close()
        await until(lambda: ha.clerk.following == 0, "they have left")


async def test_a_hundred_clients_at_once_are_all_answered() -> None:
    async with quiet(Limits(connections=200)) as ha:
        raw = b"GET /v1/status HTTP/1.1\r\nHost: ha\r\nConnection: close\r\n\r\n"
        answers = await asyncio.gather(*(ha.raw(raw) for _ in range(100)))
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)


# --- random -----------------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
keys = st.sampled_from(["n", "force", "dry_run", "enabled", "for_s", "reason", "N", "name", ""]) | st.text(max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4))
bodies = (
    st.dictionaries(keys, values, max_size=5).map(lambda value: json.dumps(value).encode())
    | values.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=200)
    | st.integers(1, 30_000).map(lambda depth: b"[" * depth)
    | st.integers(1, 5_000).map(lambda depth: b'{"n":' * depth + b"1" + b"}" * depth)
    | st.integers(1, 9_000).map(lambda digits: b'{"n": 1' + b"0" * digits + b"}")
)
fuzzed = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))


def test_any_body_is_an_answer_or_a_problem_and_never_a_defect() -> None:
    @fuzzed
    @given(st.lists(st.tuples(st.sampled_from(TARGETS), bodies), min_size=60, max_size=60))
    def check(requests: list[tuple[str, bytes]]) -> None:
        async def run() -> None:
            async with quiet() as ha:
                for target, body in requests:
                    answer = await ha.client.post(target, content=body)
                    assert answer.status_code in (200, 202, 400, 409), (target, body, answer.text)
                    if answer.status_code >= 400:
                        assert conforms(answer.json(), schema.PROBLEM)

        asyncio.run(run())

    check()


requests = st.binary(max_size=300) | st.tuples(
    st.sampled_from([b"GET", b"POST", b"DELETE", b"get", b"OPTIONS", b"CONNECT", b""]),
    st.sampled_from(
        [b"/v1/status", b"/v1/scale", b"*", b"http://x/v1/status", b"/%00", b"/v1/instances/%ff/logs", b"//"]
    ),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2", b""]),
    st.lists(
        st.sampled_from(
            [
                b"Host: ha",
                b"Content-Length: 3",
                b"Content-Length: -1",
                b"Transfer-Encoding: chunked",
                b"Expect: 100-continue",
                b"Connection: upgrade",
                b"Upgrade: websocket",
                b"Upgrade: h2c",
                b"Range: bytes=0-1",
                b" folded: yes",
                b"X\x00: y",
                b"Accept-Encoding: gzip",
            ]
        ),
        max_size=5,
    ),
    st.sampled_from([b"", b"{}", b"3\r\n{} \r\n0\r\n\r\n", b"0\r\n\r\n", b"\xff" * 50]),
).map(lambda p: b" ".join(p[:3]) + b"\r\n" + b"".join(line + b"\r\n" for line in p[3]) + b"\r\n" + p[4])


def test_any_bytes_are_an_answer_or_nothing_and_never_a_defect() -> None:
    @fuzzed
    @given(st.lists(requests, min_size=60, max_size=60))
    def check(all_bytes: list[bytes]) -> None:
        async def run() -> None:
            async with quiet(Limits(request=1.0, idle=1, connections=200)) as ha:
                answers = await asyncio.gather(*(ha.raw(raw) for raw in all_bytes))
                for raw, answer in zip(all_bytes, answers, strict=True):
                    assert answer == b"" or answer.startswith(b"HTTP/1.1 "), raw
                    assert b" 500 " not in answer.split(b"\r\n")[0], raw

        asyncio.run(run())

    check()
