"""Answers nginx's own questions to the daemon on nginx.room: today GET /health, how many serve."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

READ_DEADLINE_S = 5.0


class Room:
    """A small HTTP/1.1 listener on loopback, one request a connection."""

    def __init__(self, address: str, serving: Callable[[], int]) -> None:
        self._address = address
        self._serving = serving
        self._server: asyncio.Server | None = None

    @property
    def open(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        """Begins to listen. Raises OSError (the port is taken) or ValueError (no address)."""
        host, _, port = self._address.rpartition(":")
        self._server = await asyncio.start_server(self._answer, host.strip("[]") or "127.0.0.1", int(port))

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()  # the port is free from here on
            self._server = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, body = self._reply(head.partition(b"\r\n")[0].decode("latin-1"))
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # the asker is gone or does not speak HTTP: there is nobody to tell
        finally:
            writer.close()

    def _reply(self, request: str) -> tuple[str, bytes]:
        method, _, target = request.partition(" ")
        if target.partition(" ")[0] != "/health":
            return "404 Not Found", b'{"error":{"message":"only GET /health is here","type":"not_found"}}\n'
        serving = self._serving()
        status = "200 OK" if serving else "503 Service Unavailable\r\nRetry-After: 5"
        answer = json.dumps({"status": "healthy" if serving else "unhealthy", "serving": serving}) + "\n"
        return status, answer.encode() if method != "HEAD" else b""
