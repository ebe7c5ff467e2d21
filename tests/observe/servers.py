"""Small servers that answer as they are told, byte by byte, for the tests of the senses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import psutil

from hasupervisor.model import Address, Fact, Phase

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Address]:
    """Serves on a free port of 127.0.0.1; connections still open at the end are closed."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            # An asker that leaves early is what some tests are about.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await handler(reader, writer)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield Address(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def saying(*parts: bytes) -> Handler:
    """Reads a request's head, writes these bytes, closes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()

    return handler


def answering(status: int, body: object) -> Handler:
    """Answers every request with this status and JSON."""
    return saying(http(status, json.dumps(body, ensure_ascii=False).encode()))


def silent_after(*parts: bytes) -> Handler:
    """Reads a request, writes these bytes, and then nothing, without closing before the asker does."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(*parts)(reader, writer)
        await reader.read()

    return handler


def http(status: int, body: bytes, *headers: str) -> bytes:
    """A whole response with its length."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def living(address: Address, pid: int, endpoint: Address | None = None) -> Fact:
    """The instance whose server at that address is the process `pid`."""
    started = psutil.Process(pid).create_time() - time.time() + time.monotonic()
    where = address if endpoint is None else endpoint
    return Fact("chatglm-01", f"{pid}@1", Phase.RUNNING, where, address, started_at=started, pid=pid)


def here(address: Address) -> Fact:
    """An instance whose server is this very process."""
    return living(address, os.getpid())


def free_address() -> Address:
    """An address of 127.0.0.1 where nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Address(*probe.getsockname())


@contextlib.contextmanager
def saturated() -> Iterator[Address]:
    """An address that takes no more connections: its queue is full, and the kernel lets the next one wait."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = sockets.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield Address(*listener.getsockname())
