"""Requests in flight at each instance, counted from outside: the kernel's established connections to its address.

That is exact while nginx keeps no connections to the instances (facts of the gateway: no `keepalive` there), because
then a connection is a request. Both ends are looked at. The client's is here when it is nginx or a program of this
host; the server's is in the server's own network namespace, and shows clients on other hosts and in other namespaces
too. Where the server's end cannot be seen, more may be connected than is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from hasupervisor.model import Address
from hasupervisor.observe.namespaces import Namespaces, Place, Server
from hasupervisor.observe.own_sockets import own_inodes
from hasupervisor.observe.sockdiag import SocketRow, client_of, tcp_conversations, wire_addresses, wire_port


@dataclass(frozen=True, slots=True)
class Flight:
    """What is connected to one address, this process's own connections left out."""

    connections: int = 0
    heard_s: float | None = None  # seconds since bytes last came from it on any of them; None: nothing yet, or not told
    whole: bool = False  # the server's own side was seen: nobody else is connected
    at: float = 0.0  # monotonic: as of then


@dataclass(slots=True)
class _Ends:
    """The connections to one address, by the client's end: a connection within this host is seen from both."""

    heard_ms: dict[bytes, int | None] = field(default_factory=dict)
    own: set[bytes] = field(default_factory=set)  # of these: our own questions

    def add(self, client: bytes, heard_ms: int | None) -> None:
        known = self.heard_ms.get(client)
        times = [ms for ms in (known, heard_ms) if ms is not None]
        self.heard_ms[client] = min(times, default=None)

    def foreign(self) -> dict[bytes, int | None]:
        return {client: ms for client, ms in self.heard_ms.items() if client not in self.own}


class InFlight:
    """Counts connections; one look takes a millisecond or two, whatever else the host has open."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, namespaces: Namespaces | None = None) -> None:
        self.trouble: str | None = None  # why the last look failed, in words
        self.namespaces = Namespaces(clock) if namespaces is None else namespaces
        self._clock = clock

    def count(
        self, addresses: Iterable[Address], servers: Mapping[Address, Server] | None = None
    ) -> dict[Address, Flight] | None:
        """Established connections by address, for every numeric address given; None when the kernel cannot be asked.

        `servers`: who listens there, so that the server's side is looked at as well. A host name is left out of the
        answer: what it stands for may differ between us and whoever connects.
        """
        wanted = {
            wire_port(address.port) + wire: address for address in addresses for wire in wire_addresses(address.host)
        }
        if not wanted:
            return {}
        ports = [address.port for address in wanted.values()]
        try:
            rows = tcp_conversations(range(min(ports), max(ports) + 1))
            own = own_inodes() if rows else frozenset()
        except OSError as error:
            self.trouble = f"connections cannot be counted: {error.strerror or error}"
            return None
        self.trouble = None
        known = servers or {}
        here = {address for address, server in known.items() if self.namespaces.place(server) is Place.OURS}
        everywhere = {wire_port(one.port): one for one in here if known[one].everywhere}
        ends = _by_address(rows, wanted, everywhere, own)
        return {address: self._flight(address, found, known.get(address), here) for address, found in ends.items()}

    def _flight(self, address: Address, ends: _Ends, server: Server | None, here: set[Address]) -> Flight:
        now = self._clock()
        looked = self.namespaces.clients(server) if server is not None and address not in here else None
        if looked is None:
            return _sum(ends.foreign(), address in here, now)
        foreign = ends.foreign()
        if looked.forwarded:  # what it sees as its clients are not the ends that we see
            seen = _sum(foreign, True, looked.at)
            return replace(seen, connections=max(seen.connections, len(looked.clients) - looked.own))
        return _sum({**dict.fromkeys(looked.clients), **foreign}, True, looked.at)


def _by_address(
    rows: list[SocketRow], wanted: Mapping[bytes, Address], everywhere: Mapping[bytes, Address], own: frozenset[int]
) -> dict[Address, _Ends]:
    """Each row as the client's end of a connection to an address, as the server's, or both or none."""
    ends = {address: _Ends() for address in wanted.values()}
    for row in rows:
        address = wanted.get(row.remote_port + row.remote)
        if address is not None:
            client = client_of(row.local_port, row.local)
            ends[address].add(client, row.heard_ms if row.received else None)
            if row.inode in own:
                ends[address].own.add(client)
        address = wanted.get(row.local_port + row.local) or everywhere.get(row.local_port)
        if address is not None:
            ends[address].add(client_of(row.remote_port, row.remote), row.sent_ms if row.sent else None)
    return ends


def _sum(foreign: Mapping[bytes, int | None], whole: bool, at: float) -> Flight:
    heard = min((ms for ms in foreign.values() if ms is not None), default=None)
    return Flight(len(foreign), None if heard is None else heard / 1000.0, whole, at)
