"""What the senses cost: a health question, watching 8 and 64 instances, counting connections, reading log lines.

    PYTHONPATH=. python bench/observe.py [--seconds 10]

Everything runs on 127.0.0.1: a server that answers health questions in a process of its own, connections that another
process holds, log lines that another process sends. Prints one figure a line. Exits 1 where watching 8 instances costs
half a percent of a core or more (the whole daemon has one), or 10,000 log lines a second 40 % of a core or more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from hasupervisor.model import Address, Fact, Phase
from hasupervisor.observe.connections import InFlight
from hasupervisor.observe.exchange import Question, exchange
from hasupervisor.observe.logsocket import open_log_socket
from hasupervisor.observe.probes import Probes, ProbeSettings
from hasupervisor.observe.traffic import Traffic
from tests.real.waiting import eventually

SERVER = """
import asyncio, json
progress = {"in_flight": 0, "queued": 0, "steps": 9, "tokens": 99, "step_running_s": 0.0, "idle_s": 1.0}
body = json.dumps({"status": "healthy", "model": "m", "gpu_memory_gb": 12.0, "response": "hi", "progress": progress})
head = "HTTP/1.1 200 OK\\r\\nserver: uvicorn\\r\\ncontent-type: application/json\\r\\nconnection: close\\r\\n"
answer = f"{head}content-length: {len(body)}\\r\\n\\r\\n{body}".encode()
class Answer(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data): self.transport.write(answer); self.transport.close()
async def main():
    server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""

CONNECTIONS = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0), backlog=16)
held = []
for _ in range(int(sys.argv[1])):
    held.append(socket.create_connection(listener.getsockname()))
    held.append(listener.accept()[0])
    held[-1].send(b"x")
    held[-2].recv(1)
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""

LINES = """
import socket, sys, time
path, rate, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
line = (b'<190>Nov 24 07:45:28 ha: {"t":1795506328.125,"gen":"17","id":"a8f0c5deec2ff51f49e17b1d559b1616","m":"POST",'
        b'"u":"/v1/chat/completions","st":200,"rt":0.912,"bo":1500,"ct":"application/json","ua":"127.0.0.1:8000",'
        b'"us":"200","uct":"0.000","uht":"0.911","urt":"0.912"}')
nginx = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
nginx.setblocking(False)
nginx.connect(path)
began, sent, dropped = time.monotonic(), 0, 0
while (now := time.monotonic()) < began + seconds:
    while sent + dropped < (now - began) * rate:
        try:
            nginx.send(line)
            sent += 1
        except BlockingIOError:
            dropped += 1  # as nginx does
    time.sleep(0.001)
print(sent, dropped, flush=True)
"""


@dataclass(frozen=True)
class Promise:
    """A figure that must stay below a bound."""

    what: str
    share: float
    bound: float

    @property
    def kept(self) -> bool:
        return self.share < self.bound

    def __str__(self) -> str:
        return f"{self.what}: {100 * self.share:.2f} % of a core (must be below {100 * self.bound:g} %)"


@contextlib.contextmanager
def child(code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def port_of(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


async def cpu_of(ask: Callable[[], Awaitable[object]], times: int) -> float:
    """CPU seconds of one question, asked one after another."""
    await ask()
    began = time.process_time()
    for _ in range(times):
        await ask()
    return (time.process_time() - began) / times


async def question(address: Address) -> None:
    ours = await cpu_of(lambda: exchange(address, Question("GET", "/health"), 2.0), 1000)
    url = f"http://{address}/health"
    async with httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        theirs = await cpu_of(lambda: client.get(url, headers={"connection": "close"}, timeout=2.0), 300)
    print(f"a health question on a fresh connection: {1e6 * ours:.0f} us of CPU (by httpx: {1e6 * theirs:.0f} us)")


@contextlib.asynccontextmanager
async def watching(address: Address, count: int) -> AsyncIterator[Probes]:
    probes = Probes(ProbeSettings(), lambda: None, idle=lambda name: True)
    probes.follow([Fact(f"chatglm-{i:02}", "r", Phase.RUNNING, address, address) for i in range(count)])
    try:
        yield probes
    finally:
        await probes.close()


async def at_rest(address: Address, count: int, seconds: float) -> float:
    """The share of a core that watching so many healthy instances takes at the default settings."""
    async with watching(address, count) as probes:
        await eventually(lambda: all(view.prompt_ok for view in probes.views().values()), within=30.0)
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - cpu) / (time.monotonic() - began)


def look(others: int, ours: int) -> None:
    """The CPU time of one count (the kernel's part included) with so many connections elsewhere and to instances."""
    with child(CONNECTIONS, str(others)) as elsewhere, child(CONNECTIONS, str(ours)) as instances:
        port_of(elsewhere)
        addresses = [Address("127.0.0.1", port_of(instances))]
        in_flight = InFlight()
        times = []
        for _ in range(20):
            began = time.process_time()
            flights = in_flight.count(addresses)
            times.append(time.process_time() - began)
            assert flights is not None
            assert flights[addresses[0]].connections == ours
        times.sort()
        typical = 1e3 * times[len(times) // 2]
        print(f"counting {ours} in flight among {2 * (others + ours)} sockets: {typical:.2f} ms of CPU")


async def lines(rate: int, seconds: float) -> float:
    """The share of a core that reading so many lines a second takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.sock")
        traffic = Traffic(open_log_socket(path), InFlight())
        traffic.start()
        began, cpu = time.monotonic(), time.process_time()
        sender = await asyncio.create_subprocess_exec(
            sys.executable, "-c", LINES, os.fspath(path), str(rate), str(seconds), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await sender.communicate()
        sent, dropped = map(int, output.split())
        share = (time.process_time() - cpu) / (time.monotonic() - began)
        await eventually(lambda: traffic.received == sent)
        traffic.close()
    print(f"log lines: {sent / seconds:.0f} a second read, {dropped} of {sent + dropped} dropped by the sender")
    return share


async def run(seconds: float) -> list[Promise]:
    with child(SERVER) as server:
        address = Address("127.0.0.1", port_of(server))
        await question(address)
        eight = await at_rest(address, 8, seconds)
        many = await at_rest(address, 64, seconds)
    print(f"watching 64 instances: {100 * many:.2f} % of a core")
    look(others=1500, ours=16)
    look(others=100, ours=500)
    return [
        Promise("watching 8 instances", eight, 0.005),
        Promise("10,000 log lines a second", await lines(10_000, seconds), 0.40),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="that each figure over time is taken for")
    promises = asyncio.run(run(parser.parse_args().seconds))
    for promise in promises:
        print(promise)
    return 0 if all(promise.kept for promise in promises) else 1


if __name__ == "__main__":
    raise SystemExit(main())
