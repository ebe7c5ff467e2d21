"""uvicorn's HTTP/1.1 connection with what it lacks: who is there, deadlines, bounds, and errors as documents.

uvicorn shows an application neither the socket of a request nor the time that a request takes to arrive, and answers
what it does not understand with plain text; hence this subclass, the one place that knows uvicorn's inside.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from hasupervisor.report.document import problem
from hasupervisor.report.peer import peer_of

LINGER = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server grants its clients."""

    connections: int = 64
    request: float = 10.0  # seconds for a request to arrive whole, head and body
    head: int = 16384  # bytes
    idle: int = 5  # seconds that a connection may be kept for a next request


class Connection(H11Protocol):
    """One client. `state` of its requests has `peer` (or None) and `abort`, which cuts the connection."""

    def __init__(self, config: Config, server_state: ServerState, limits: Limits) -> None:
        super().__init__(config, server_state, {})
        self._limits = limits
        self._deadline: asyncio.TimerHandle | None = None
        self._turned_away = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = peer_of(transport.get_extra_info("socket"))
        self.app_state = {"peer": peer, "abort": transport.abort}
        if len(self.connections) > self._limits.connections:
            words = f"{self._limits.connections} connections are open already; close some, or try again"
            self._say(HTTPStatus.SERVICE_UNAVAILABLE, words)
            transport.close()
            return
        self._begin_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._turned_away:
            super().data_received(data)

    def on_response_complete(self) -> None:
        self._begin_deadline()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's way to say that what came is not HTTP."""
        if self._has_begun_to_answer():
            self.transport.abort()  # words in the middle of another answer would be read as part of it
        else:
            self._turn_away(HTTPStatus.BAD_REQUEST, "what came is not an HTTP/1.1 request, or its head is too long")

    def end_soon(self) -> None:
        """Ends with the answer that is under way; at once, if there is none."""
        cycle = self._current()
        if cycle is None:
            self.transport.close()
        else:
            cycle.keep_alive = False

    def _begin_deadline(self) -> None:
        self._end_deadline()
        self._deadline = self.loop.call_later(self._limits.request, self._late)

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        """Called that long after the connection or its last answer began to wait for a request."""
        if self.transport.is_closing() or self._is_answering():
            return
        if self._has_begun_to_answer() or not (self._current() or self.conn.trailing_data[0]):
            self.transport.close()
            return
        self._turn_away(HTTPStatus.REQUEST_TIMEOUT, f"the request has not arrived in {self._limits.request:g} s")

    def _current(self) -> RequestResponseCycle | None:
        """The request that is being answered; uvicorn has None, and then an ended one, where its type says neither."""
        cycle: RequestResponseCycle | None = self.cycle
        return None if cycle is None or cycle.response_complete else cycle

    def _is_answering(self) -> bool:
        """A whole request has arrived, and its answer is not complete: that may take as long as it takes."""
        cycle = self._current()
        return cycle is not None and not cycle.more_body

    def _has_begun_to_answer(self) -> bool:
        cycle = self._current()
        return cycle is not None and cycle.response_started

    def _turn_away(self, status: HTTPStatus, detail: str) -> None:
        """Says why, and then hears the client out for a moment: a close with unread bytes would cost it the words."""
        self._turned_away = True
        self._say(status, detail)
        self.transport.write_eof()
        self.flow.resume_reading()
        self._end_deadline()
        self._deadline = self.loop.call_later(LINGER, self.transport.abort)

    def _say(self, status: HTTPStatus, detail: str) -> None:
        body = json.dumps(problem(status.phrase, status.value, detail, None)).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
