"""One question: every shape of answer and every way to fail, against real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from hasupervisor.model import Address, Miss
from hasupervisor.observe.exchange import BODY_LIMIT, Answer, Missed, NotAsked, Question, exchange
from tests.observe.servers import Handler, free_address, http, saturated, saying, serving, silent_after

GET = Question("GET", "/health")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def ask(handler: Handler, timeout: float = 2.0) -> Answer:
    async with serving(handler) as address:
        return await exchange(address, GET, timeout)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ([http(200, b"abc")], Answer(200, b"abc")),
        ([http(503, b"{}", "Connection: keep-alive")], Answer(503, b"{}")),
        ([CHUNKED + b"3\r\nabc\r\n", b"2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n"], Answer(200, b"abcde")),
        ([b"HTTP/1.1 200 OK\r\n\r\nuntil the end"], Answer(200, b"until the end")),
        ([b"HTTP/1.0 200 OK\r\n\r\nold"], Answer(200, b"old")),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], Answer(204, b"")),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n", http(200, b"x")], Answer(200, b"x")),
        ([bytes([byte]) for byte in http(200, b"drop by drop")], Answer(200, b"drop by drop")),
        ([http(200, b"x" * BODY_LIMIT)], Answer(200, b"x" * BODY_LIMIT)),
        ([http(200, b"x" * (BODY_LIMIT + 1))], Answer(200, b"x" * BODY_LIMIT, whole=False)),
    ],
)
async def test_an_answer_comes_as_it_was_sent(said: list[bytes], answer: Answer) -> None:
    assert await ask(saying(*said)) == answer


async def test_a_whole_answer_is_not_kept_waiting_for_a_connection_that_stays_open() -> None:
    began = time.monotonic()
    assert await ask(silent_after(http(200, b"abc"))) == Answer(200, b"abc")
    assert time.monotonic() - began < 1.0


async def test_an_endless_body_is_read_no_further_than_the_limit() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        while True:
            writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            await writer.drain()

    answer = await ask(endless)
    assert (answer.status, len(answer.body), answer.whole) == (200, BODY_LIMIT, False)


async def test_the_request_is_what_a_server_expects() -> None:
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heard.append(head + await reader.readexactly(2))
        writer.write(http(200, b""))

    async with serving(listen) as address:
        await exchange(address, Question("POST", "/v1/x?y=1", b"{}"), 2.0)
    head, body = heard[0].split(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v1/x?y=1 HTTP/1.1"
    assert {line.lower() for line in lines[1:]} >= {
        f"host: {address}",
        "connection: close",
        "content-length: 2",
        "content-type: application/json",
    }
    assert body == b"{}"


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (saying(), "closed the connection without an answer"),
        (reset, "connection reset by peer"),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Le"), "closed the connection without an answer"),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), "its answer is cut short"),
        (saying(CHUNKED + b"9\r\nabc"), "its answer is cut short"),
        (saying(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "its answer is not HTTP: illegal status line"),
        (saying(b"\x15\x03\x01\x00\x02\x02\x28\r\n\r\n"), "its answer is not HTTP: illegal status line"),
        (saying(CHUNKED + b"zz\r\n"), "its answer is not HTTP: illegal chunk header"),
        (saying(b"HTTP/1.1 200 OK\r\n" + b"X-Long: y\r\n" * 9000), "its answer is not HTTP: Receive buffer too long"),
    ],
)
async def test_a_broken_answer_is_told_in_words(handler: Handler, words: str) -> None:
    with pytest.raises(Missed) as missed:
        await ask(handler)
    assert missed.value.miss is Miss.BROKEN
    assert words in str(missed.value)


async def test_nobody_listening_is_refused() -> None:
    with pytest.raises(Missed) as missed:
        await exchange(free_address(), GET, 2.0)
    assert (missed.value.miss, str(missed.value)) == (Miss.REFUSED, "connection refused")


async def test_a_full_queue_is_a_connect_timeout() -> None:
    with saturated() as address, pytest.raises(Missed) as missed:
        await exchange(address, GET, 0.3)
    assert (missed.value.miss, str(missed.value)) == (Miss.CONNECT_TIMEOUT, "no connection in 0.3 s")


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (silent_after(), "no answer in 0.3 s"),
        (silent_after(b"HTTP/1.1 200 OK\r\nContent-"), "no answer in 0.3 s"),
        (silent_after(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na"), "no whole answer in 0.3 s"),
    ],
)
async def test_no_answer_before_the_deadline_is_silence(handler: Handler, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(Missed) as missed:
        await ask(handler, timeout=0.3)
    assert (missed.value.miss, str(missed.value)) == (Miss.SILENT, words)
    assert 0.29 < time.monotonic() - began < 1.0


async def test_the_deadline_covers_an_answer_that_drips() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.05)

    with pytest.raises(Missed) as missed:
        await ask(drip, timeout=0.3)
    assert missed.value.miss is Miss.SILENT


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with os.scandir("/proc/self/fd") as files:
        highest = max(int(file.name) for file in files)
    fillers: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


async def test_having_no_file_descriptor_left_is_our_fault() -> None:
    async with serving(saying(http(200, b""))) as address:
        with no_descriptors_left(), pytest.raises(NotAsked, match="cannot connect: too many open files"):
            await exchange(address, GET, 2.0)
        assert await exchange(address, GET, 2.0) == Answer(200, b"")


async def test_a_host_name_that_does_not_resolve_is_not_the_instances_fault() -> None:
    with pytest.raises(NotAsked, match="its host name cannot be resolved"):
        await exchange(Address("x" * 64 + ".invalid", 80), GET, 5.0)  # no name server is asked for such a label


async def test_an_answer_missed_while_our_own_loop_was_late_is_thrown_away() -> None:
    async with serving(silent_after()) as address:
        asking = asyncio.ensure_future(exchange(address, GET, 0.5))
        await asyncio.sleep(0.1)
        time.sleep(0.35)  # noqa: ASYNC251, the lateness is what is tested
        with pytest.raises(NotAsked, match=r"the daemon itself was 0\.\d\d s late"):
            await asking


async def test_an_answer_that_came_while_our_own_loop_was_late_is_an_answer() -> None:
    async with serving(saying(http(200, b"abc"))) as address:
        asking = asyncio.ensure_future(exchange(address, GET, 2.0))
        await asyncio.sleep(0)
        time.sleep(0.5)  # noqa: ASYNC251, the lateness is what is tested
        assert await asking == Answer(200, b"abc")


async def test_a_cancelled_question_leaves_no_connection_behind() -> None:
    left = asyncio.Event()

    async def wait_for_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asking.cancel()
        assert await reader.read() == b""
        left.set()

    async with serving(wait_for_the_end) as address:
        asking = asyncio.ensure_future(exchange(address, GET, 5.0))
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(2.0):
            await left.wait()
