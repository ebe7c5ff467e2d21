"""Descriptors: the limit is raised and shared out; an acceptor takes what there is room for, and says so seldom."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from hasupervisor.descriptors import FEWEST, RESERVED, Acceptor, LogThrottle, OpenFiles, streams
from tests.real.waiting import eventually

RAISE = """
import resource, sys
from hasupervisor.descriptors import raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
found = raise_limit()
print(found.given, found.limit, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_the_soft_limit_is_raised_to_the_hard_one_and_what_was_given_is_kept_in_mind() -> None:
    said = subprocess.run([sys.executable, "-c", RAISE, "256", "2048"], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["256", "2048", "2048"]


@pytest.mark.parametrize(
    ("limit", "wanted", "held"),
    [
        (65536, 1000, 1000),
        (1024, 1000, 1024 - RESERVED),
        (1024, 40, 40),
        (256, 1000, FEWEST),
        (resource.RLIM_INFINITY, 100_000, 100_000),
    ],
)
def test_requests_that_wait_leave_the_descriptors_that_all_else_needs(limit: int, wanted: int, held: int) -> None:
    assert OpenFiles(given=256, limit=limit).holdable(wanted) == held


def test_the_same_words_are_said_once_in_a_while_and_others_are_not_held_back_by_them() -> None:
    now = 0.0
    is_worth_saying = LogThrottle(10.0, lambda: now)
    said = []
    for second in range(25):
        now = float(second)
        said += [(second, what) for what in ("a", "b") if is_worth_saying(what)]
    assert said == [(at, what) for at in (0, 10, 20) for what in ("a", "b")]


# --- the acceptor -----------------------------------------------------------------------------------------------------


class Guests:
    """Who came through an acceptor, each until it is let go."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.inside: list[asyncio.StreamWriter] = []
        self.most = 0
        listening = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.address = listening.getsockname()
        self.acceptor = Acceptor(listening, streams(self._came), lambda: len(self.inside) < self.room)

    def _came(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.inside.append(writer)
        self.most = max(self.most, len(self.inside))

    def let_go(self) -> None:
        self.inside.pop().close()
        self.acceptor.freed()


@pytest.fixture
def callers() -> Iterator[list[socket.socket]]:
    made: list[socket.socket] = []
    yield made
    for one in made:
        one.close()


async def test_those_for_whom_there_is_no_room_wait_and_come_in_as_others_leave(callers: list[socket.socket]) -> None:
    guests = Guests(room=40)
    callers += [socket.create_connection(guests.address) for _ in range(100)]
    await eventually(lambda: len(guests.inside) >= 40)
    came = 0
    while came < 100:
        await eventually(lambda: guests.inside)
        guests.let_go()
        came += 1
    assert guests.most < 40 + 2 * 16  # those of one turn of the loop, taken before the first of them had come in
    guests.acceptor.close()


async def test_without_a_descriptor_it_rests_says_so_once_and_takes_connections_again_afterwards(
    callers: list[socket.socket],
) -> None:
    guests = Guests(room=100)
    callers += [socket.create_connection(guests.address) for _ in range(30)]
    await eventually(lambda: len(guests.inside) == 30)
    more = [socket.socket() for _ in range(20)]
    callers += more
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with capture_logs() as logged:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(one.fileno() for one in more) + 1, hard))
        try:
            for one in more:
                one.connect(guests.address)
            await eventually(lambda: logged)
            await eventually(lambda: guests.acceptor._rest is None)  # it has tried again, in vain
            await eventually(lambda: guests.acceptor._rest is not None)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await eventually(lambda: len(guests.inside) == 50)
    (line,) = logged
    assert line["event"].startswith("cannot take a connection: Too many open files; ls /proc/")
    guests.acceptor.close()
