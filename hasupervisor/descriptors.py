"""File descriptors: how many this process may have, who may use how many, and listening without running out of them."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeGuard

import structlog

log = structlog.get_logger(__name__)

RESERVED = 320
"""Descriptors that requests which wait never get: for probes, healing, the database, dockerd, and the connections of
people and of scrapers, which have limits of their own (report/connection.py)."""

SURPLUS = 64
"""Connections beyond the requests that may wait, for those that are told at once that too many wait."""

FEWEST = 16
"""Requests that may wait however few descriptors there are."""

AT_ONCE = 16
"""Connections that are taken in one turn of the event loop, so that those taken before are dealt with in between."""

TRY_AGAIN = 0.25
"""Seconds until connections are taken again after there was no descriptor for one."""

SAY_AGAIN = 10.0
"""Seconds until the same words are worth another line of the log."""

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Not the fault of whoever meets them: this process, or the host, has no more of something."""


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """How many descriptors this process may have, and how many it was started with."""

    given: int
    limit: int  # resource.RLIM_INFINITY: any number

    def holdable(self, wanted: int) -> int:
        """How many of `wanted` requests may wait at once, so that RESERVED descriptors are left for all the rest."""
        if self.limit == resource.RLIM_INFINITY:
            return wanted
        return min(wanted, max(FEWEST, self.limit - RESERVED))


def raise_limit() -> OpenFiles:
    """Raises the soft limit to the hard one: outside of a unit it is 1024 by default, for the sake of select(2)."""
    given, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # a hard limit above fs.nr_open
        log.warning(f"no more than {given} files may be open: {error}; ulimit -Hn, sysctl fs.nr_open")
        return OpenFiles(given, given)
    return OpenFiles(given, hard)


def is_exhausted(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether it was a want of descriptors or of memory that made this fail."""
    return isinstance(error, OSError) and error.errno in EXHAUSTED


class LogThrottle:
    """Says whether something that may happen a thousand times a second is worth a line of the log now."""

    def __init__(self, every: float = SAY_AGAIN, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = every
        self._clock = clock
        self._said: dict[Hashable, float] = {}

    def __call__(self, what: Hashable) -> bool:
        """True the first time, and then once in `every` seconds for the same `what`."""
        now = self._clock()
        self._said = {key: at for key, at in self._said.items() if now - at < self._every}
        if what in self._said:
            return False
        self._said[what] = now
        return True


class Acceptor:
    """Takes the connections of a listening socket; those for which there is no room wait in the kernel's queue.

    asyncio's own server takes as many as `backlog` in one turn, and when it runs out of descriptors it logs as many
    lines. This one takes a few in a turn, none while `has_room()` is false (call `freed` when that may have changed),
    and after running out of descriptors it rests, and says so seldom.
    """

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        """`protocol()` makes the protocol of one connection."""
        listening.setblocking(False)
        self._listening = listening
        self._protocol = protocol
        self._has_room = has_room
        self._may_log = LogThrottle()
        self._loop = asyncio.get_running_loop()
        self._arrivals: set[asyncio.Task[None]] = set()
        self._rest: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._loop.add_reader(listening, self._take)

    def freed(self) -> None:
        """There may be room again."""
        if not self._is_closed and self._rest is None and self._has_room():
            self._loop.add_reader(self._listening, self._take)

    def close(self) -> None:
        """Takes no more, and closes the listening socket; connections that were taken go on."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()

    def _take(self) -> None:
        for _ in range(AT_ONCE):
            if not self._has_room():
                self._loop.remove_reader(self._listening)
                return
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            connection.setblocking(False)
            arrival = self._loop.create_task(self._admit(connection), name="a connection")
            self._arrivals.add(arrival)
            arrival.add_done_callback(self._arrivals.discard)

    def _pause(self, error: OSError) -> None:
        if self._may_log(error.errno):
            log.error(f"cannot take a connection: {error.strerror}; ls /proc/{os.getpid()}/fd | wc -l")
        self._loop.remove_reader(self._listening)
        self._rest = self._loop.call_later(TRY_AGAIN, self._again)

    def _again(self) -> None:
        self._rest = None
        self.freed()

    async def _admit(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError as error:  # it has gone again
            connection.close()
            log.debug("a connection was lost as it came", why=str(error))


def streams(
    connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None],
) -> Callable[[], asyncio.StreamReaderProtocol]:
    """For a Acceptor: `connected(reader, writer)` is called for each connection, as asyncio.start_server does."""

    def protocol() -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), connected)

    return protocol
