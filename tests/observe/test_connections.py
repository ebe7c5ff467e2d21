"""In-flight counts and listening ports against real connections of other processes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator

import pytest

from hasupervisor.model import Address
from hasupervisor.observe import sockdiag
from hasupervisor.observe.connections import Flight, InFlight
from hasupervisor.observe.own_sockets import OWN_FILES
from hasupervisor.observe.ports import taken_ports
from hasupervisor.observe.sockdiag import ESTABLISHED, LISTEN, tcp_sockets
from tests.observe.servers import free_address
from tests.real.waiting import eventually

# Connects as often as told, and holds the connections until its standard input ends.
CLIENT = """
import socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = [socket.create_connection((host, port)) for _ in range(count)]
print("connected", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def listening(host: str = "127.0.0.1", family: int = socket.AF_INET) -> Iterator[socket.socket]:
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen(512)
        yield listener


def address_of(listener: socket.socket) -> Address:
    return Address(*listener.getsockname()[:2])


@contextlib.contextmanager
def connected(host: str, port: int, count: int) -> Iterator[None]:
    """So many connections of another process."""
    command = [sys.executable, "-S", "-c", CLIENT, host, str(port), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"connected\n"
        yield


def count(*addresses: Address) -> dict[Address, int]:
    flights = InFlight().count(addresses)
    assert flights is not None
    return {address: flight.connections for address, flight in flights.items()}


async def test_connections_are_counted_by_the_address_they_go_to() -> None:
    with listening() as one, listening() as two, connected("127.0.0.1", address_of(one).port, 3):
        with connected("127.0.0.1", address_of(two).port, 5):
            unused = free_address()
            expected = {address_of(one): 3, address_of(two): 5, unused: 0}
            assert count(address_of(one), address_of(two), unused) == expected
        await eventually(lambda: count(address_of(two)) == {address_of(two): 0})


def test_our_own_connections_are_not_users_work() -> None:
    with listening() as listener, connected("127.0.0.1", address_of(listener).port, 2), contextlib.ExitStack() as own:
        for _ in range(3):
            own.enter_context(socket.create_connection(listener.getsockname()))
        assert count(address_of(listener)) == {address_of(listener): 2}


def test_a_connection_in_ipv6_clothes_counts_for_the_ipv4_address() -> None:
    with listening() as listener, connected("::ffff:127.0.0.1", address_of(listener).port, 2):
        assert count(address_of(listener)) == {address_of(listener): 2}


def test_ipv6_connections_are_counted() -> None:
    with listening("::1", socket.AF_INET6) as listener, connected("::1", address_of(listener).port, 2):
        assert count(address_of(listener)) == {address_of(listener): 2}


def test_the_same_port_of_another_host_is_another_instance() -> None:
    with listening("127.0.0.2") as listener, connected("127.0.0.2", address_of(listener).port, 2):
        port = address_of(listener).port
        expected = {Address("127.0.0.1", port): 0, Address("127.0.0.2", port): 2}
        assert count(Address("127.0.0.1", port), Address("127.0.0.2", port)) == expected


def test_a_host_name_is_not_guessed_at() -> None:
    assert count() == {}
    assert count(Address("localhost", 80)) == {}


def test_hundreds_of_connections_are_all_counted() -> None:
    with listening() as listener, connected("127.0.0.1", address_of(listener).port, 400):
        assert count(address_of(listener)) == {address_of(listener): 400}


async def test_bytes_that_come_from_an_instance_are_dated() -> None:
    with listening() as listener, connected("127.0.0.1", address_of(listener).port, 2):
        address = address_of(listener)
        served = [listener.accept()[0] for _ in range(2)]

        def flight() -> Flight:
            flights = InFlight().count([address])
            assert flights is not None
            return flights[address]

        def heard() -> float | None:
            return flight().heard_s

        assert (flight().connections, heard()) == (2, None)
        served[0].sendall(b"x")
        await eventually(lambda: heard() is not None)
        await eventually(lambda: (heard() or 0.0) > 0.2)
        served[1].sendall(b"x")
        await eventually(lambda: (heard() or 9.0) < 0.2)
        for connection in served:
            connection.close()


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_proc_tells_the_same_as_netlink(host: str, family: socket.AddressFamily) -> None:
    with listening(host, family) as listener, connected(host, address_of(listener).port, 3):
        port = sockdiag.wire_port(address_of(listener).port)

        def ends(rows: Iterable[sockdiag.SocketRow]) -> list[tuple[bytes, ...]]:
            return sorted(row[:4] for row in rows if row.remote_port == port)

        by_netlink = ends(tcp_sockets(ESTABLISHED))
        assert len(by_netlink) == 3
        assert ends(sockdiag.by_proc(ESTABLISHED)) == by_netlink
        wire = sockdiag.wire_addresses(host)[0]
        for rows in (tcp_sockets(LISTEN), sockdiag.by_proc(LISTEN)):
            assert (port, wire) in [(row.local_port, row.local) for row in rows]


def test_where_netlink_is_refused_proc_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockdiag, "NETLINK_SOCK_DIAG", 31)  # a netlink family that does not exist: the kernel refuses
    with listening() as listener, connected("127.0.0.1", address_of(listener).port, 3):
        assert count(address_of(listener)) == {address_of(listener): 3}
        assert taken_ports(range(address_of(listener).port, address_of(listener).port + 1))


def test_where_neither_can_be_read_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockdiag, "NETLINK_SOCK_DIAG", 31)
    monkeypatch.setattr(sockdiag, "PROC_NET", sockdiag.PROC_NET / "absent")
    in_flight = InFlight()
    assert in_flight.count([Address("127.0.0.1", 80)]) is None
    assert in_flight.trouble is not None
    assert in_flight.trouble.startswith("connections cannot be counted: ")
    assert taken_ports(range(8000, 8100)) == frozenset()


def test_the_kernels_filter_takes_both_ends_of_a_range() -> None:
    with listening() as listener:
        port = address_of(listener).port
        for ports, found in (
            (range(port, port + 1), True),
            (range(port - 5, port + 1), True),
            (range(port, port + 5), True),
            (range(port + 1, port + 2), False),
            (range(port - 1, port), False),
            (range(port, port), False),
        ):
            assert (port in taken_ports(ports)) == found, ports


@pytest.mark.parametrize(
    ("listener_host", "bind", "taken"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.2", "0.0.0.0", True),
        ("127.0.0.2", "some-name", True),
    ],
)
def test_a_port_is_taken_where_the_bind_would_fail(listener_host: str, bind: str, taken: bool) -> None:
    with listening(listener_host) as listener:
        port = address_of(listener).port
        assert taken_ports(range(port, port + 1), bind) == (frozenset({port}) if taken else frozenset())


def test_a_listener_on_all_ipv6_addresses_takes_the_ipv4_port_too() -> None:
    with listening("::", socket.AF_INET6) as listener:
        port = address_of(listener).port
        assert taken_ports(range(port, port + 1)) == {port}


def test_looking_leaves_no_descriptor_behind() -> None:
    in_flight = InFlight()

    def descriptors() -> list[str]:
        return sorted(file.name for file in OWN_FILES.iterdir())

    before = descriptors()
    for _ in range(50):
        in_flight.count([Address("127.0.0.1", 80)])
        taken_ports(range(8000, 8100))
    assert descriptors() == before
