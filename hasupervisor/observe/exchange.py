"""One HTTP question on a connection of its own, with one deadline for all of it, and a name for each way to fail.

Why not httpx: it costs 0.94 ms of CPU a question on a fresh connection (3 % of a core for 64 instances asked every two
seconds) and 11 MB of memory; h11, the parser that httpx itself stands on, on a plain asyncio connection costs 0.3 ms
and 0.5 MB (bench/observe.py).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from dataclasses import dataclass

import h11

from hasupervisor.model import Address, Miss
from hasupervisor.observe.host import LagMeter

HEAD_LIMIT = 64 * 1024  # bytes of status line and headers
BODY_LIMIT = 64 * 1024  # bytes of body that are read unless the caller says otherwise
LATE = 0.25  # seconds of lateness of our own event loop that make a missing answer worthless as evidence

# Not the instance's fault: we have no file, buffer, port, permission or network to ask with.
OURS = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EADDRNOTAVAIL,
        errno.EAGAIN,
        errno.EACCES,
        errno.EPERM,
        errno.ENETUNREACH,
        errno.ENETDOWN,
    }
)


@dataclass(frozen=True, slots=True)
class Question:
    """A request; with a body it is sent as JSON."""

    method: str
    path: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as it came."""

    status: int
    body: bytes
    whole: bool = True  # False: it was longer than the limit, the rest was not read


class Missed(Exception):
    """The instance did not give a usable answer; `miss` says how, the text says it in words."""

    def __init__(self, miss: Miss, words: str) -> None:
        super().__init__(words)
        self.miss = miss


class NotAsked(Exception):
    """The question could not be put properly for a reason of ours: it says nothing of the instance."""


async def exchange(address: Address, question: Question, timeout: float, limit: int = BODY_LIMIT) -> Answer:
    """Asks and returns the answer, whatever its status. `timeout` (seconds) covers connecting, asking and reading.

    Raises Missed, or NotAsked when the failure is ours: no file descriptor, no network, a host name that cannot be
    resolved, or an event loop that was late by more than LATE or a quarter of the timeout meanwhile.
    """
    loop = asyncio.get_running_loop()
    tolerated = min(LATE, timeout / 4)
    lag = LagMeter(min(0.1, tolerated / 2))
    dialogue = _Dialogue(address, question, limit, loop.create_future())
    lag.start()
    try:
        async with asyncio.timeout(timeout):
            await loop.create_connection(lambda: dialogue, address.host, address.port)
            return await dialogue.answer
    except TimeoutError as late:
        # The kernel's own ETIMEDOUT comes here too.
        if (lateness := lag.take()) > tolerated:
            raise _we_were_late(lateness) from late
        raise dialogue.timed_out(timeout) from None
    except Missed as missed:
        # A peer may have given up on us while we were not listening.
        if missed.miss is Miss.BROKEN and (lateness := lag.take()) > tolerated:
            raise _we_were_late(lateness) from missed
        raise
    except UnicodeError as error:
        raise NotAsked(f"its host name cannot be resolved: {error}") from error
    except OSError as error:
        raise _unconnected(error) from error
    finally:
        lag.stop()
        dialogue.end()


def _we_were_late(lateness: float) -> NotAsked:
    return NotAsked(f"the daemon itself was {lateness:.2f} s late")


def _unconnected(error: OSError) -> Missed | NotAsked:
    if isinstance(error, socket.gaierror):
        return NotAsked(f"its host name cannot be resolved: {error.strerror}")
    words = (os.strerror(error.errno) if error.errno else str(error)).lower()
    if error.errno in OURS:
        return NotAsked(f"cannot connect: {words}")
    # "No route to host" is here as well: nobody is there to take the connection.
    return Missed(Miss.REFUSED, words)


class _Dialogue(asyncio.Protocol):
    """The life of one connection: sends the question when it is made, gathers the answer."""

    def __init__(self, address: Address, question: Question, limit: int, answer: asyncio.Future[Answer]) -> None:
        self.answer = answer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        self._wire = self._spell(address, question)
        self._limit = limit
        self._transport: asyncio.Transport | None = None
        self._status: int | None = None
        self._body = bytearray()

    def _spell(self, address: Address, question: Question) -> bytes:
        headers = [("host", str(address)), ("user-agent", "chatglm-ha"), ("accept", "*/*"), ("connection", "close")]
        if question.body:
            headers += [("content-type", "application/json"), ("content-length", str(len(question.body)))]
        request = h11.Request(method=question.method, target=question.path, headers=headers)
        parts = [self._http.send(request)]
        if question.body:
            parts.append(self._http.send(h11.Data(data=question.body)))
        parts.append(self._http.send(h11.EndOfMessage()))
        return b"".join(part for part in parts if part)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._wire)

    def data_received(self, data: bytes) -> None:
        self._hear(data)

    def eof_received(self) -> None:
        self._hear(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, OSError) and exc.errno:
            self._broken(os.strerror(exc.errno).lower())
        else:
            self._broken("closed the connection without an answer")

    def timed_out(self, timeout: float) -> Missed:
        """What to say when the deadline has passed."""
        if self._transport is None:
            return Missed(Miss.CONNECT_TIMEOUT, f"no connection in {timeout:g} s")
        if self._status is None:
            return Missed(Miss.SILENT, f"no answer in {timeout:g} s")
        return Missed(Miss.SILENT, f"no whole answer in {timeout:g} s")

    def end(self) -> None:
        """Lets go of the connection."""
        if not self.answer.cancel() and not self.answer.cancelled():
            self.answer.exception()  # a failure that came together with the deadline has been told by it
        if self._transport is not None:
            self._transport.abort()

    def _hear(self, data: bytes) -> None:
        if self.answer.done():
            return
        try:
            self._http.receive_data(data)
            while not self.answer.done() and self._next():
                pass
        except h11.RemoteProtocolError as error:
            self._broken(self._complaint(error, ended=not data))

    def _next(self) -> bool:
        """Takes in one event; False: more has to come in first."""
        event = self._http.next_event()
        match event:
            case h11.Response():
                self._status = event.status_code
            case h11.Data():
                self._body += event.data
                if len(self._body) > self._limit:
                    self._finish(whole=False)
            case h11.EndOfMessage():
                self._finish(whole=True)
            case h11.ConnectionClosed():
                self._broken("closed the connection without an answer")
            case h11.InformationalResponse():
                pass
            case _:
                return False
        return True

    def _finish(self, whole: bool) -> None:
        assert self._status is not None
        self.answer.set_result(Answer(self._status, bytes(self._body[: self._limit]), whole))

    def _broken(self, words: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(Missed(Miss.BROKEN, words))

    def _complaint(self, error: h11.RemoteProtocolError, ended: bool) -> str:
        if not ended:
            return f"its answer is not HTTP: {error}"
        return "closed the connection without an answer" if self._status is None else "its answer is cut short"
