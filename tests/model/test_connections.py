"""Clients that hold connections and do nothing with them: they cost others nothing, and not for long."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from model_api.admission import Refused
from model_api.bodies import Bodies
from tests.model.running import ModelServer, wait_for

HARRIED = 0.1  # seconds that /health may take at the limit of connections
IMPATIENT = Path(__file__).with_name("impatient_server.py")


@contextmanager
def connections(server: ModelServer, number: int, begun: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections, each with the beginning of a request sent."""
    held: list[socket.socket] = []
    port = int(server.url.rsplit(":", 1)[1])
    try:
        for _ in range(number):
            client = socket.socket()
            held.append(client)
            client.settimeout(30)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # no megabytes for who does not read
            client.connect(("127.0.0.1", port))
            client.sendall(begun)
        yield held
    finally:
        for client in held:
            client.close()


def ended(client: socket.socket) -> bool:
    """Whether the server has closed a connection; what it sent before is read away."""
    client.setblocking(False)
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def sent(client: socket.socket, data: bytes) -> bool:
    """Whether a connection still took some data."""
    client.setblocking(True)
    try:
        client.sendall(data)
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def impatient(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server with limits of time that a test can wait for."""
    # The name is in every piece of a stream: an answer that is not read soon fills what the kernel holds of it.
    env = {"MODEL_CACHE": str(model_cache), "MODEL_NAME": "x" * 2000}
    server = ModelServer(tmp_path_factory.mktemp("impatient") / "log", env, command=(str(IMPATIENT), "1.0"))
    server.wait_ready()
    yield server
    server.stop()
    server.check_log()


def test_health_is_answered_within_100_ms_beyond_the_limit_of_connections_and_streams_go_on(
    model_cache: Path, tmp_path: Path
) -> None:
    """With 256 open files, as a shell's `ulimit -Hn 256` gives them: the soft limit is raised to that."""
    hard = ("-c", f"import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 256)); {RUN}")
    server = ModelServer(tmp_path / "log", {"MODEL_CACHE": str(model_cache)}, command=hard)
    try:
        server.wait_ready()
        limit = server.metric("model_api_connections_limit")
        assert 50 < limit < 256 - 100
        body = {"prompt": "x", "max_tokens": 8000, "ignore_eos": True, "stream": True}
        with server.client.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
            pieces = stream.iter_lines()
            next(pieces)
            for begun in (
                b"",
                b"POST / HTTP/1.1\r\nHost: x\r\n",
                b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
            ):
                with connections(server, 2 * int(limit), begun) as held:
                    took = min(health_takes(server) for _ in range(5))
                    print(f"{len(held)} connections of {begun[:20]!r}: /health takes {1000 * took:.0f} ms")
                    assert took < HARRIED
                    assert server.metric("model_api_connections") <= limit
                    next(pieces)
        assert "the longest idle are closed for new ones" in server.log
        assert "Too many open files" not in server.log
    finally:
        server.stop()
    server.check_log()


RUN = "runpy.run_module('model_api', run_name='__main__')"


def health_takes(server: ModelServer) -> float:
    """Seconds for GET /health on a connection of its own."""
    began = time.monotonic()
    with connections(server, 1, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as (client,):
        assert b" 200 OK" in client.recv(65536)
    return time.monotonic() - began


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one(impatient: ModelServer) -> None:
    soft, hard = resource.prlimit(impatient.process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard or soft >= 1 << 20


@pytest.mark.parametrize(
    "begun",
    [b"", b"POST / HTTP/1.1\r\nHost: x\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /"],
    ids=["nothing", "half a head", "a second head begun"],
)
def test_a_head_that_does_not_come_to_its_end_ends_the_connection(impatient: ModelServer, begun: bytes) -> None:
    with connections(impatient, 3, begun) as held:
        wait_for(lambda: all(map(ended, held)), "the connections to be closed", patience=10)


def test_a_head_that_drips_has_no_more_time_than_one_that_does_not(impatient: ModelServer) -> None:
    with connections(impatient, 1, b"POST / HTTP/1.1\r\n") as (client,):
        wait_for(lambda: ended(client) or not sent(client, b"a: b\r\n"), "the connection to be closed", patience=10)


@pytest.mark.parametrize("path", ["/", "/health"])
def test_a_body_that_drips_is_told_408_or_cut_off(impatient: ModelServer, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode()
    with connections(impatient, 1, head) as (client,):
        wait_for(lambda: ended(client) or not sent(client, b"x"), "the connection to be closed", patience=15)
    assert impatient.ask("ping").json()["response"] == "pong"


def test_who_does_not_read_an_answer_is_cut_off_and_holds_no_place(impatient: ModelServer) -> None:
    body = b'{"prompt":"x","max_tokens":8000,"ignore_eos":true,"stream":true,"temperature":2}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    before = impatient.metric("model_api_generation_tokens_total")
    with connections(impatient, 1, head + body):
        wait_for(lambda: impatient.progress()["in_flight"] == 1, "the answer to begin")
        wait_for(lambda: 'code="499"' in impatient.client.get(f"{impatient.url}/metrics").text, "the client to be cut")
        wait_for(lambda: impatient.progress()["in_flight"] == 0, "the row to be free")
        assert impatient.metric("model_api_generation_tokens_total") < before + 8000


def test_a_body_in_chunks_of_one_byte_is_refused_before_it_costs_much(impatient: ModelServer) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connections(impatient, 1, head) as (client,):
        wait_for(lambda: not sent(client, b"1\r\nx\r\n" * 1000), "the connection to be closed")
    assert impatient.ask("ping").json()["response"] == "pong"


def test_idle_connections_and_pipelined_requests_are_served_as_before(impatient: ModelServer) -> None:
    request = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with connections(impatient, 1, request * 3) as (client,):
        said = b""
        while said.count(b'"alive"') < 3:
            received = client.recv(65536)
            assert received
            said += received
        time.sleep(2.0)  # longer than a head may take: an idle connection has no head begun
        client.sendall(request)
        assert b"200 OK" in client.recv(65536)


def test_what_is_no_http_or_asks_for_another_protocol_writes_nothing_into_the_log(impatient: ModelServer) -> None:
    before = len(impatient.log)
    upgrade = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    for sent_first in (b"\xff\x00 garbage\r\n\r\n", upgrade):
        with connections(impatient, 20, sent_first) as held:
            wait_for(lambda: all(map(ended, held)), "the connections to be closed")
    assert len(impatient.log) == before


# --- the bytes of bodies under way ----------------------------------------------------------------------------------


class Sending:
    """A client's body: a piece at once, and the rest when it is told to."""

    def __init__(self, piece: bytes) -> None:
        self._piece = piece
        self.go_on = asyncio.Event()

    async def stream(self):  # type: ignore[no-untyped-def]
        yield self._piece
        await self.go_on.wait()
        yield b"."


def test_beyond_the_budget_of_all_bodies_the_oldest_is_cut() -> None:
    async def scenario() -> list[object]:
        bodies = Bodies(budget=100)
        senders = [Sending(b"x" * 40) for _ in range(3)]
        reading = []
        for sender in senders:
            reading.append(asyncio.create_task(bodies.read(sender, 1000)))  # type: ignore[arg-type]
            await asyncio.sleep(0)
        await asyncio.wait(reading[:1])
        for sender in senders:
            sender.go_on.set()
        return await asyncio.gather(*reading, return_exceptions=True)

    first, *others = asyncio.run(scenario())
    assert "did not arrive" in str(first)
    assert others == [b"x" * 40 + b"."] * 2


def test_beyond_the_budget_long_bodies_that_wait_to_be_read_are_refused() -> None:
    bodies = Bodies(budget=100)
    with bodies.reading(b"x" * 200):  # alone: let in
        refused = bodies.reading(b"x")
        with pytest.raises(Refused, match="too many long requests") as told:
            refused.__enter__()
    assert told.value.refusal.retry_after == 1
    with bodies.reading(b"x" * 60), bodies.reading(b"x" * 40):
        pass
