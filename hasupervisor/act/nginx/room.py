"""Answers nginx on the socket in nginx.dir: how many serve (GET /health), and where a request may go."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import Callable

import structlog

from hasupervisor.act.nginx.waiting import RETRY_AFTER, Asked, Told, Verdict, WaitingRoom
from hasupervisor.descriptors import SURPLUS, Acceptor, streams

log = structlog.get_logger(__name__)

READ_DEADLINE_S = 5.0

# As OpenAI's clients know errors; the words say whether it is worth trying again.
_REFUSALS = {
    Verdict.NOBODY: ("503 Service Unavailable", "no instance serves now", "unavailable"),
    Verdict.FULL: (
        "503 Service Unavailable",
        "no instance serves now, and too many requests wait already",
        "unavailable",
    ),
    Verdict.DEADLY: (
        "502 Bad Gateway",
        "every instance that was given this request failed before it answered",
        "upstream_failed",
    ),
}


class Room:
    """A small HTTP/1.1 listener, one request a connection; nginx alone speaks to it."""

    def __init__(self, serving: Callable[[], int], waiting: WaitingRoom) -> None:
        self._serving = serving
        self._waiting = waiting
        self._acceptor: Acceptor | None = None
        self._answers: set[asyncio.Task[None]] = set()

    @property
    def open(self) -> bool:
        return self._acceptor is not None

    async def start(self, listener: socket.socket) -> None:
        """Begins to answer on a socket that listens already; it is closed with this. Raises OSError."""
        # Not a server of asyncio's: that one may take the socket's name away when it closes, which is to stay.
        self._acceptor = Acceptor(listener, streams(self._connected), self._has_room)

    async def close(self) -> None:
        """Stops listening. Whoever waits is let go of: nginx tells those clients that nobody serves."""
        if self._acceptor is not None:
            self._acceptor.close()  # who asks from here on is refused, or waits where the socket is held
            self._acceptor = None
        for answer in self._answers:
            answer.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)

    def _has_room(self) -> bool:
        """Whether one more connection leaves the descriptors that the rest of the daemon needs."""
        return len(self._answers) < self._waiting.hold_max + SURPLUS

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(reader, writer), name="room")
        self._answers.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._answers.discard(task)
        if self._acceptor is not None:
            self._acceptor.freed()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("BUG: the room could not answer nginx", exc_info=error)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                head = await reader.readuntil(b"\r\n\r\n")
            request, headers = _parse(head.decode("latin-1"))
            if "x-ha-tried" in headers:
                response = await self._unless_it_leaves(reader, _asked(headers))
            else:
                response = self._health(request)
            if response is not None:
                async with asyncio.timeout(READ_DEADLINE_S):
                    writer.write(response)
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # the asker is gone or does not speak HTTP: there is nobody to tell
        finally:
            writer.close()

    async def _unless_it_leaves(self, reader: asyncio.StreamReader, asked: Asked) -> bytes | None:
        """The answer to a request that waits; None when its client has gone meanwhile: nginx then closes this too."""
        told = asyncio.ensure_future(self._waiting.ask(asked))
        left = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait([told, left], return_when=asyncio.FIRST_COMPLETED)
            return _go(told.result()) if told.done() else None
        finally:
            for task in (told, left):
                task.cancel()
            await asyncio.gather(told, left, return_exceptions=True)

    def _health(self, request: str) -> bytes:
        method, _, target = request.partition(" ")
        if target.partition(" ")[0] != "/health":
            return _response("404 Not Found", '{"error":{"message":"only GET /health is here","type":"not_found"}}\n')
        serving = self._serving()
        answer = json.dumps({"status": "healthy" if serving else "unhealthy", "serving": serving}) + "\n"
        status = "200 OK" if serving else f"503 Service Unavailable\r\nRetry-After: {RETRY_AFTER}"
        return _response(status, answer if method != "HEAD" else "")


def _parse(head: str) -> tuple[str, dict[str, str]]:
    request, *lines = head.split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return request, {name.strip().lower(): value.strip() for name, _, value in pairs}


def _asked(headers: dict[str, str]) -> Asked:
    try:
        waited = float(headers.get("x-ha-waited") or 0.0)
    except ValueError:
        waited = 0.0
    return Asked(
        tried=headers.get("x-ha-tried", ""),
        connected=headers.get("x-ha-connect", ""),
        status=headers.get("x-ha-status", ""),
        waited=max(0.0, waited) if math.isfinite(waited) else 0.0,
    )


def _go(told: Told) -> bytes:
    if told.verdict is Verdict.GO:
        lines = ["200 OK", "X-Accel-Redirect: @again", f"X-HA-Target: {told.target}", f"X-HA-Waited: {told.waited:.3f}"]
        return _response("\r\n".join(lines), "")
    status, message, kind = _REFUSALS[told.verdict]
    if told.verdict is not Verdict.DEADLY:
        status += f"\r\nRetry-After: {RETRY_AFTER}"
    return _response(status, json.dumps({"error": {"message": message, "type": kind}}, separators=(",", ":")) + "\n")


def _response(status: str, body: str) -> bytes:
    content = body.encode()
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        "Connection: close\r\n\r\n"
    ).encode() + content
