"""Connections: how many there may be, and how long one may take over a request's head or over reading its answer."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

log = logging.getLogger(__name__)

HEAD_TIMEOUT = 10.0  # seconds from a request's first byte, or from the connection, to the end of its head
READ_TIMEOUT = 60.0  # seconds in which a client must take some of the 64 kB that wait for it
LINGER = 5.0  # seconds for a client to end what it sends after it has its answer
LONGEST_HEAD = 65_536  # bytes: more than nginx lets through
MOST = 4096  # connections, where the limit of open files allows so many and admission needs no more
OTHER_FILES = 128  # descriptors that are kept for all else: the log, the model's files, connections on their way out
FEWEST = 16
PIECES = 1024  # parts that a body may come in, and ...
PIECE = 512  # ... one more for every so many bytes: taking each apart costs some 15 us
WARN_EVERY = 60.0  # seconds between two words in the log about the same trouble


def raise_file_limit() -> int:
    """Raises the soft limit of open files to the hard one; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:  # a hard limit above fs.nr_open
            log.warning("no more than %d files may be open: %s; ulimit -Hn, sysctl fs.nr_open", soft, error)
        else:
            soft = wanted
    return wanted if soft == resource.RLIM_INFINITY else soft


def most_connections(files: int, inside: int) -> int:
    """How many connections to hold at once with so many `files`, of which `inside` may be requests at work."""
    in_use = sum(1 for _ in Path("/proc/self/fd").iterdir())
    most = max(FEWEST, min(max(MOST, 2 * inside), files - OTHER_FILES - in_use))
    if inside > most // 2:
        log.warning(
            "MAX_BATCH and MAX_QUEUE let %d requests in, and only %d connections can be held under the limit of %d "
            "open files; raise it (LimitNOFILE= of systemd, --ulimit nofile= of docker)",
            *(inside, most, files),
        )
    return most


class State(StrEnum):
    """What a connection waits for."""

    HEAD = "head"  # the rest of a request's head, or the first one
    BODY = "body"  # the rest of a request's body
    IDLE = "idle"  # another request
    WORK = "work"  # this server


class Book:
    """All connections by their state. Where a new one is too many, the longest waiting one makes room for it.

    So a new /health is answered however many connections hang about: those that wait for this server are bounded by
    admission, and all others can go.
    """

    ORDER = (State.HEAD, State.BODY, State.IDLE)  # who goes first

    def __init__(self, most: int) -> None:
        self.most = most
        self.closed = 0  # connections that had to make room
        self._by_state: dict[State, dict[Connection, None]] = {state: {} for state in State}
        self._warned = -WARN_EVERY

    def __len__(self) -> int:
        return sum(map(len, self._by_state.values()))

    def move(self, connection: Connection, old: State | None, new: State | None) -> None:
        """Notes what a connection waits for now; None: it is not there."""
        if old is not None:
            self._by_state[old].pop(connection, None)
        if new is not None:
            self._by_state[new][connection] = None

    def make_room(self) -> bool:
        """Whether there is room for one more; closes another connection for it if need be."""
        if len(self) < self.most:
            return True
        self.closed += 1
        if time.monotonic() - self._warned >= WARN_EVERY:
            self._warned = time.monotonic()
            log.warning("%d connections, the most there may be: the longest idle are closed for new ones", self.most)
        oldest = next((next(iter(held)) for state in self.ORDER if (held := self._by_state[state])), None)
        if oldest is None:
            return False
        oldest.cut()
        return True


class _Parser(h11.Connection):
    """h11 with a bound on the parts of a body: a megabyte in chunks of one byte would take seconds to take apart."""

    _pieces = 0
    _bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > PIECES + self._bytes // PIECE:
                raise h11.RemoteProtocolError("the body comes in too many parts")
        return event

    def start_next_cycle(self) -> None:
        self._pieces = self._bytes = 0
        super().start_next_cycle()


class Connection(H11Protocol):
    """uvicorn's connection with limits of time on each of its states."""

    def __init__(self, *args: Any, book: Book, **more: Any) -> None:
        super().__init__(*args, **more)
        self.conn = _Parser(h11.SERVER, LONGEST_HEAD)
        self._book = book
        self._had_place = False
        self._state: State | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None  # runs while the client does not take what waits for it

    # --- what the event loop calls ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._book.make_room():
            self._had_place = True
            super().connection_made(transport)
            self._turn(State.HEAD)
        else:
            self.transport = transport
            transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._had_place:
            super().connection_lost(exc)
        self._turn(None)
        self._stop_reading_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_reading_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reading_timer()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._start_reading_timer()  # closing waits until all is sent, which a client that does not read never lets be

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._start_reading_timer()

    # --- its states ---------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Ends the connection at once, whatever it waits for."""
        self._turn(None)
        self.transport.abort()

    def _look(self) -> None:
        if self.transport.is_closing():
            self._start_reading_timer()
            return
        self._turn(self._seen_state())

    def _seen_state(self) -> State:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            return State.BODY if cycle.more_body else State.WORK
        if self.conn.their_state is h11.SEND_BODY:
            return State.BODY  # it has its answer, and still sends
        if cycle is None or self.conn.trailing_data[0]:
            return State.HEAD
        return State.IDLE

    def _turn(self, state: State | None) -> None:
        if state is self._state and state is not State.BODY:
            return
        cycle: RequestResponseCycle | None = self.cycle
        answered = cycle is not None and cycle.response_complete
        if state is self._state and not (answered and self._timer is None):
            return  # a body still comes: one place in the queue, one limit of time
        self._book.move(self, self._state, state)
        self._state = state
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if state is State.HEAD:
            self._timer = self.loop.call_later(HEAD_TIMEOUT, self.cut)
        elif state is State.BODY and answered:
            self._timer = self.loop.call_later(LINGER, self.cut)

    def _start_reading_timer(self) -> None:
        if self._reading is None:
            self._reading = self.loop.call_later(READ_TIMEOUT, self.cut)

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None


def protocol(book: Book) -> Callable[..., Connection]:
    """What uvicorn makes its connections of."""
    return partial(Connection, book=book)
