"""Ten thousand malformed requests to the socket of a daemon that serves: each is told so, nothing else happens."""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.real.daemon import PATIENT, Daemon, as_processes, daemon

REQUESTS = 10_000
ANSWER_S = 20.0
ROUND = 2_000  # after so many, what the daemon holds is looked at again
GROWN_BYTES = 16 << 20  # caches of code paths that were not taken before; a leak of 1 KiB a request would be 8 MiB
SEED = 20261124

COMMANDS = ("scale", "restart", "pause", "autoscale", "drill", "autoscale/replay")
WRONG_BODIES = (
    b"{",
    b"[]",
    b"null",
    b"1e999",
    b'"n"',
    b"[" * 5000,
    b'{"n":',
    b'{"zz": 1}',
    b'{"n": {"n": []}}',
    b"\xff\xfe",
)
WRONG_TARGETS = (
    "/v1/history?n=many",
    "/v1/history?since=yesterday",
    "/v1/history?zz=1",
    "/v1/status?zz",
    "/v1/instances/no-such/explain",
    "/v1/instances/%00/explain",
    "/v1/instances/../../etc/passwd",
    "/v1/operations/op-999999",
    "/v2/status",
    "/",
    "//",
    "/%ff",
)
METHODS = ("PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT", "GE", "get", "\u00e9")


@pytest.fixture
def host(port_range: Callable[[int], range], standin_server: Path) -> Iterator[Daemon]:
    with daemon(port_range(20), PATIENT, as_processes(standin_server)) as host:
        host.start()
        host.wait_until_green()
        yield host


def malformed(chance: random.Random) -> bytes:
    """One request that must not be carried out, of one of six kinds."""
    kind = chance.randrange(6)
    if kind == 0:
        return bytes(chance.randrange(256) for _ in range(chance.randrange(1, 200))) + b"\r\n\r\n"
    if kind == 1:
        return post(chance.choice(COMMANDS), chance.choice(WRONG_BODIES))
    if kind == 2:
        return post(chance.choice(COMMANDS), json.dumps({f"z{chance.randrange(99)}": chance.random()}).encode())
    if kind == 3:
        return f"GET {chance.choice(WRONG_TARGETS)} HTTP/1.1\r\nHost: ha\r\nConnection: close\r\n\r\n".encode()
    if kind == 4:
        return f"{chance.choice(METHODS)} /v1/status HTTP/1.1\r\nHost: ha\r\nConnection: close\r\n\r\n".encode()
    wrong = chance.choice(
        ["Content-Length: -1", "Content-Length: 1e3", "Host", ": x", f"X: {'y' * 600_000}", "Host: ha\0"]
    )
    return f"POST /v1/pause HTTP/1.1\r\nHost: ha\r\nConnection: close\r\n{wrong}\r\n\r\n".encode()


def post(command: str, body: bytes) -> bytes:
    return (
        f"POST /v1/{command} HTTP/1.1\r\nHost: ha\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def answer(path: Path, request: bytes) -> bytes:
    """All that the daemon says to these bytes until it closes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_S)
        connection.connect(str(path))
        said = b""
        with suppress(BrokenPipeError):  # it has turned the request away before it was whole; its words are there
            connection.sendall(request)
        while piece := connection.recv(65536):
            said += piece
        return said


def test_ten_thousand_malformed_requests_are_each_told_so_and_leave_the_daemon_as_it_was(host: Daemon) -> None:
    chance, pid = random.Random(SEED), host.pid
    before, process = host.status(), psutil.Process(host.pid)
    told: Counter[int] = Counter()
    sizes, files = [], []
    for number in range(REQUESTS):
        request = malformed(chance)
        said = answer(host.socket, request)
        head = said.partition(b"\r\n")[0]
        assert head.startswith(b"HTTP/1.1 4"), f"number {number}, {request[:300]!r} was answered {said[:300]!r}"
        assert b"application/problem+json" in said, said[:300]
        told[int(head[9:12])] += 1
        if number % ROUND == ROUND - 1:
            sizes.append(process.memory_info().rss)
            files.append(process.num_fds())
    assert sum(told.values()) == REQUESTS
    assert {400, 404, 405} <= set(told), told
    assert sizes[-1] - sizes[0] < GROWN_BYTES, sizes
    assert max(files) - min(files) < 20, files  # probes and requests to instances come and go
    after = host.wait_until_green()
    assert (host.pid, after["desired"], after["mode"], after["paused"]) == (
        pid,
        before["desired"],
        before["mode"],
        None,
    )
    assert [one["pid"] for one in after["instances"]] == [one["pid"] for one in before["instances"]]
