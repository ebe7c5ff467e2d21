"""Who is connected to a server that lives in, or is asked from, another network namespace: with real ones."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hasupervisor.model import Address, Fact
from hasupervisor.observe.connections import Flight, InFlight
from hasupervisor.observe.namespaces import AT_LEAST, STALE, Namespaces, Place, Server
from tests.claims import Claims
from tests.observe.servers import here, living
from tests.observe.test_connections import CLIENT, address_of, connected, listening
from tests.real.netns import Neighbour, neighbour
from tests.real.waiting import eventually

# Listens on all addresses, says where, accepts whatever comes and holds it until its standard input ends.
SERVER = """
import socket, sys, threading
listener = socket.create_server(("", int(sys.argv[1])), backlog=64)
print(listener.getsockname()[1], flush=True)
held = []
def accept():
    while True:
        held.append(listener.accept())
threading.Thread(target=accept, daemon=True).start()
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def other(claims: Claims) -> Iterator[Neighbour]:
    with neighbour(claims) as found:
        yield found


@contextlib.contextmanager
def connected_from(other: Neighbour, address: Address, count: int) -> Iterator[None]:
    """So many connections of a process in the other namespace."""
    command = other.command(sys.executable, "-S", "-c", CLIENT, address.host, str(address.port), str(count))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"connected\n"
        yield


@contextlib.contextmanager
def serving_in(other: Neighbour) -> Iterator[Fact]:
    """An instance whose server lives in the other namespace."""
    command = other.command(
        sys.executable, "-S", "-c", SERVER, "0"
    )  # `ip` becomes the program: its pid is the server's
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        yield living(Address(other.its, int(server.stdout.readline())), server.pid)


class Eye:
    """Looks at one instance, as the traffic sense does; time goes only when it is told to."""

    def __init__(self, fact: Fact, proc: Path = Path("/proc")) -> None:
        self.now = 1000.0
        self.fact, self.server = fact, Server.of(fact)
        self.namespaces = Namespaces(lambda: self.now, proc)
        self.namespaces.follow([self.server])
        self._in_flight = InFlight(lambda: self.now, self.namespaces)

    def flight(self) -> Flight:
        flights = self._in_flight.count([self.fact.address], {self.fact.address: self.server})
        assert flights is not None
        return flights[self.fact.address]

    def look(self) -> tuple[int, bool]:
        self.namespaces.look()
        flight = self.flight()
        return flight.connections, flight.whole


def test_a_client_on_another_host_is_counted_by_the_servers_side(other: Neighbour) -> None:
    with listening(other.ours) as listener:
        eye = Eye(here(address_of(listener)))
        assert eye.look() == (0, True)
        with connected_from(other, address_of(listener), 3), connected(other.ours, address_of(listener).port, 2):
            assert eye.look() == (5, True), "those within this host are seen from both ends, and counted once"


def test_a_server_on_all_addresses_is_asked_at_one_and_used_at_another(other: Neighbour) -> None:
    with listening("0.0.0.0") as listener:
        port = address_of(listener).port
        fact = living(Address("127.0.0.1", port), os.getpid(), endpoint=Address("0.0.0.0", port))
        with connected_from(other, Address(other.ours, port), 2), connected("127.0.0.1", port, 1):
            assert Eye(fact).look() == (3, True)


async def test_bytes_to_a_client_on_another_host_are_a_sign_of_life(other: Neighbour) -> None:
    with listening(other.ours) as listener, connected_from(other, address_of(listener), 1):
        eye = Eye(here(address_of(listener)))
        assert eye.flight().heard_s is None
        served = listener.accept()[0]
        with served:
            served.sendall(b"x")
            await eventually(lambda: eye.flight().heard_s is not None)
            await eventually(lambda: (eye.flight().heard_s or 0.0) > 0.2)


async def test_the_clients_of_a_server_in_a_namespace_of_its_own_are_seen_there(other: Neighbour) -> None:
    with serving_in(other) as fact:
        eye = Eye(fact)
        assert eye.namespaces.place(eye.server) is Place.OWN
        await eventually(lambda: eye.look() == (0, True))
        with connected(fact.address.host, fact.address.port, 1):
            assert eye.look() == (1, True), "of this host"
            with connected_from(other, Address("127.0.0.1", fact.address.port), 2):
                eye.now += AT_LEAST
                await eventually(lambda: eye.look() == (3, True), "and of its neighbours, of whom nothing is seen here")
        eye.now += AT_LEAST
        await eventually(lambda: eye.look() == (0, True))


async def test_our_own_questions_are_not_counted_there_either(other: Neighbour) -> None:
    with serving_in(other) as fact, socket.create_connection((fact.address.host, fact.address.port)):
        eye = Eye(fact)
        assert eye.look() == (0, True)
        with connected(fact.address.host, fact.address.port, 1):
            await eventually(lambda: eye.look() == (1, True))


async def test_one_that_takes_the_place_of_a_question_of_ours_is_seen_at_once(other: Neighbour) -> None:
    with serving_in(other) as fact:
        eye = Eye(fact)
        question = socket.create_connection((fact.address.host, fact.address.port))
        assert eye.look() == (0, True)
        question.close()
        with connected_from(other, Address("127.0.0.1", fact.address.port), 1):
            # The kernel counts as many sockets as before.
            await eventually(lambda: eye.look() == (1, True))


def test_what_was_seen_long_ago_is_not_known_any_more(other: Neighbour) -> None:
    with serving_in(other) as fact:
        eye = Eye(fact)
        assert eye.look() == (0, True)
        eye.now += STALE
        assert eye.flight().whole
        eye.now += 0.1
        assert not eye.flight().whole


def test_a_pid_that_is_not_the_servers_tells_nothing(other: Neighbour) -> None:
    with serving_in(other) as fact:
        for wrong in (
            replace(fact, pid=None),
            replace(fact, pid=2**22 + 1),
            replace(fact, started_at=None),  # nothing says that it is
            replace(fact, started_at=time.monotonic() - 3600.0),
        ):
            eye = Eye(wrong)
            assert eye.namespaces.place(eye.server) is Place.UNSEEN
            assert eye.look() == (0, False)


def test_a_process_that_cannot_be_seen_is_unknown_and_not_idle(other: Neighbour, tmp_path: Path) -> None:
    with serving_in(other) as fact:
        assert Eye(fact, proc=tmp_path).look() == (0, False)
