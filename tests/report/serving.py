"""The real servers on real sockets, in the event loop of the test."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from hasupervisor.lock import take_socket
from hasupervisor.report.api import control_api
from hasupervisor.report.connection import Limits
from hasupervisor.report.server import serve
from tests.report import schema
from tests.report.clerk import Clerk
from tests.report.schema import conforms


@dataclass
class Served:
    """A control socket that is served, and a client on it."""

    clerk: Clerk
    path: Path
    client: httpx.AsyncClient
    stopping: asyncio.Event
    task: asyncio.Task[None]

    async def raw(self, request: bytes, *, then_close: bool = False) -> bytes:
        """What comes back for these bytes, until the server closes the connection."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(request)
        answer = b"" if then_close else await rest_of(reader)
        writer.close()
        return answer


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the other side closes or resets the connection."""
    answer = b""
    with suppress(ConnectionError):
        async with asyncio.timeout(10):
            while piece := await reader.read(65536):
                answer += piece
    return answer


@asynccontextmanager
async def served(clerk: Clerk | None = None, limits: Limits | None = None) -> AsyncIterator[Served]:
    clerk = clerk if clerk is not None else Clerk()
    with tempfile.TemporaryDirectory(prefix="ha-") as folder:  # short: a socket's name has 107 bytes
        path = Path(folder) / "control.sock"
        control = take_socket(path, "", "chatglm-had test")
        stopping = asyncio.Event()
        application = control_api(clerk, stopping)
        task = asyncio.create_task(serve(control.socket, application, stopping, limits or Limits()))
        transport = httpx.AsyncHTTPTransport(uds=str(path), verify=False)  # no certificates to load, 0.1 s each time
        async with httpx.AsyncClient(transport=transport, base_url="http://ha", timeout=20) as client:
            try:
                yield Served(clerk, path, client, stopping, task)
            finally:
                stopping.set()
                async with asyncio.timeout(10):
                    await task
                control.release()


async def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, f"not within 10 s: {what}"
        await asyncio.sleep(0.01)


def me() -> str:
    """How the daemon calls whoever runs this test."""
    import pwd

    return f"{pwd.getpwuid(os.getuid()).pw_name} (uid {os.getuid()})"


def lines_of(text: str) -> list[dict[str, Any]]:
    """Newline-delimited JSON."""
    return [json.loads(line) for line in text.splitlines()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def problem(answer: Any, status: int) -> dict[str, Any]:
    """The problem document, checked for its form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert conforms(found, schema.PROBLEM)
    assert found["status"] == status
    return found
