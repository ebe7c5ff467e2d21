"""A wave of requests into the hold queue, where a process may open 1024 files: the daemon heals, and goes on."""

from __future__ import annotations

import asyncio
import collections
import json
import math
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx
import psutil
import pytest

from tests.real.daemon import BIN, PATIENT, Daemon, as_processes, daemon

WAVE = 1100
BACK_S = 3.0
"""Seconds from the instance being able to serve to users being answered again."""


@pytest.fixture(params=["-Sn", "-n"], ids=["soft", "hard"])
def host(request: pytest.FixtureRequest, standin_server: Path, port_range: Callable[[int], range]) -> Iterator[Daemon]:
    """One instance that loads for two seconds; the daemon was started with 1024 files (soft, or for good)."""
    one = {"service": {"instances": 1, "min": 1}}
    settings = as_processes(standin_server, {"LOAD_S": "2", "SERVICE_S": "0.01", "SLOTS": "64"})
    with daemon(port_range(20), PATIENT, settings, one) as host:
        limited = f'ulimit {request.param} 1024; exec "$@"'
        host.start(program=("sh", "-c", limited, "sh", str(BIN / "chatglm-had")))
        host.wait_until_green(1)
        yield host
        host.stop()


@contextmanager
def many_files() -> Iterator[None]:
    """This process may open as many as the clients of a wave need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(20000, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass
class Wave:
    """What became of clients who all came within a second."""

    codes: collections.Counter[str] = field(default_factory=collections.Counter)
    first_answer: float | None = None  # monotonic

    def __str__(self) -> str:
        return f"{dict(self.codes)}"


async def send(port: int, wave: Wave, number: int) -> None:
    await asyncio.sleep(number * 0.8 / WAVE)
    body = b'{"prompt":"hi"}'
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        answer = await asyncio.wait_for(reader.read(), 60.0)
        writer.close()
        code = answer.split(b" ")[1].decode()
    except (OSError, IndexError, TimeoutError) as error:
        code = type(error).__name__
    wave.codes[code] += 1
    if code == "200" and wave.first_answer is None:
        wave.first_answer = time.monotonic()


async def until_able(endpoint: str, dead: int) -> float:
    """When the instance itself says that it can serve, in its next life."""
    async with httpx.AsyncClient(timeout=1.0) as client:
        while True:
            try:
                if (await client.get(f"http://{endpoint}/health")).json()["status"] == "healthy":
                    return time.monotonic()
            except (httpx.TransportError, KeyError):
                assert not psutil.pid_exists(dead) or psutil.Process(dead).status() == psutil.STATUS_ZOMBIE
            await asyncio.sleep(0.02)


async def kill_under_a_wave(host: Daemon, wave: Wave) -> float:
    """Kills the instance, sends the wave; returns when the instance was able to serve again."""
    instance = host.instance("chatglm-01")
    os.kill(instance["pid"], signal.SIGKILL)
    able = asyncio.create_task(until_able(instance["endpoint"], instance["pid"]))
    await asyncio.gather(*(send(host.ports[0], wave, number) for number in range(WAVE)))
    return await able


def closest(log: str) -> tuple[str, float]:
    """The warning or error that was written twice within the shortest time, and that time in seconds."""
    last: dict[str, float] = {}
    found = ("", math.inf)
    for line in log.splitlines():
        said = json.loads(line)
        if said["level"] in ("warning", "error", "critical"):
            event, at = said["event"], datetime.fromisoformat(said["ts"]).timestamp()
            found = min(found, (event, at - last.get(event, -math.inf)), key=lambda pair: pair[1])
            last[event] = at
    return found


def test_a_wave_of_held_requests_does_not_starve_the_healing_nor_flood_the_log(host: Daemon) -> None:
    mark = len(host.log())
    wave = Wave()
    with many_files():
        able = asyncio.run(kill_under_a_wave(host, wave))
    print(f"clients: {wave}; first answer {(wave.first_answer or 0.0) - able:.2f} s after it was able to")
    event, apart = closest(host.log_since(mark))
    assert apart >= 1.0, f"written again after {apart:.3f} s: {event}"
    assert wave.first_answer is not None
    assert wave.first_answer - able < BACK_S
    assert host.runs()
    host.wait_until_green(1)
    soft, hard = psutil.Process(host.pid).rlimit(resource.RLIMIT_NOFILE)
    assert soft == hard  # raised, as far as it may be
    given = psutil.Process(host.instance("chatglm-01")["pid"]).rlimit(resource.RLIMIT_NOFILE)
    assert given == (1024, hard)  # instances get what the daemon was given
    assert ("704 requests may wait at once, not 1000" in host.log()) == (hard == 1024)
