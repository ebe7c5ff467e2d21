"""The stand-in model server as a process on this host, for the tests of the senses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from hasupervisor.model import Address, Fact, Phase
from hasupervisor.observe.exchange import Missed, Question, exchange
from tests.observe.servers import free_address

SCRIPT = Path(__file__).parents[1] / "real" / "standin" / "server.py"


@dataclass
class Standin:
    name: str
    address: Address
    process: subprocess.Popen[bytes]

    @property
    def fact(self) -> Fact:
        return Fact(self.name, f"{self.process.pid}@0", Phase.RUNNING, self.address, self.address, pid=self.process.pid)

    async def tell(self, **mode: object) -> None:
        await exchange(self.address, Question("POST", "/standin", json.dumps(mode).encode()), 5.0)

    async def prompt(self, text: str) -> None:
        await exchange(self.address, Question("POST", "/", json.dumps({"prompt": text}).encode()), 60.0)

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.asynccontextmanager
async def standin(name: str = "chatglm-01", wait: bool = True, **env: str) -> AsyncIterator[Standin]:
    """A running stand-in; with `wait` one that answers."""
    address = free_address()
    process = _spawn(name, os.environ | {"HOST": address.host, "PORT": str(address.port), "SERVICE_S": "0.02"} | env)
    try:
        while wait:
            assert process.poll() is None, "the stand-in ended"
            with contextlib.suppress(Missed):
                await exchange(address, Question("GET", "/health"), 5.0)
                break
            await asyncio.sleep(0.02)
        yield Standin(name, address, process)
    finally:
        process.kill()
        process.wait()


def _spawn(name: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-S", str(SCRIPT), name], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
