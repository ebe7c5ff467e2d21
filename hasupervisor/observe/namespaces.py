"""Who is connected to servers in network namespaces of their own: containers, by the server's side of each connection.

A client on another host, in another container or behind a published port has no socket in the host's own namespace;
the server always has one. It is read from /proc/<pid>/net, which needs no permission but to see that process. Where
that is refused (hidepid, a daemon in a container, a remote engine), nobody knows who is connected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from hasupervisor.model import Address, Fact
from hasupervisor.observe.identity import is_main_process
from hasupervisor.observe.own_sockets import own_clients
from hasupervisor.observe.sockdiag import ESTABLISHED, by_proc, client_of, wire_addresses, wire_port

PROC = Path("/proc")
EVERYWHERE = ("", "0.0.0.0", "::")
STALE = 3.0
"""Seconds after which a look says nothing of the present."""
SHARE = 0.05
"""Of one core, that looking may cost while many come and go: a namespace costs about 9 ms."""
AT_LEAST = 2.0  # seconds between two readings: counts that are equal may hide that one left and another came
PAUSE = 0.25  # seconds between two looks


@dataclass(frozen=True, slots=True)
class Server:
    """The process that listens at an instance's address, as far as the runtime tells."""

    runtime_id: str
    address: Address  # where we ask it
    pid: int | None
    started_at: float | None  # monotonic
    port: int  # where it listens in a network namespace of its own
    everywhere: bool = False  # it listens on every address of its namespace

    @classmethod
    def of(cls, fact: Fact) -> Server:
        port = fact.address.port if fact.inside_port is None else fact.inside_port
        return cls(fact.runtime_id, fact.address, fact.pid, fact.started_at, port, fact.endpoint.host in EVERYWHERE)


class Place(Enum):
    """Whose network namespace a server lives in."""

    OURS = "ours"
    OWN = "its own"
    UNSEEN = "cannot be seen"


@dataclass(frozen=True, slots=True)
class Looked:
    """Who is connected to one server, by its own side, as of `at` (monotonic)."""

    at: float
    clients: frozenset[bytes]  # their ends
    own: int  # connections of ours among them, where they cannot be told apart
    calm: bool  # none of ours was there, which might make room for one of a user
    forwarded: bool  # through a published port: a client's end is then not what the client itself has
    sockets: tuple[str, ...]  # how many the kernel counted before: while it counts as many, this stands
    read_at: float  # when the clients were read
    cost: float  # seconds that this took


class Namespaces:
    """`look` reads, in a thread, for it takes milliseconds; `clients` tells what was read, at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, proc: Path = PROC) -> None:
        self._clock = clock
        self._proc = proc
        self._wanted: tuple[Server, ...] = ()
        self._looked: dict[Server, Looked] = {}
        self._places: dict[Server, tuple[float, Place]] = {}

    def follow(self, servers: Iterable[Server]) -> None:
        """Whom to look at from now on."""
        self._wanted = tuple(servers)
        self._looked = {server: looked for server, looked in list(self._looked.items()) if server in self._wanted}
        self._places = {server: placed for server, placed in list(self._places.items()) if server in self._wanted}

    def place(self, server: Server) -> Place:
        """Where that server lives; UNSEEN also where its pid is not known to be its own (another pid namespace)."""
        now, known = self._clock(), self._places.get(server)
        if known is not None and now - known[0] <= STALE:
            return known[1]
        found = self._find(server)
        if found is not Place.UNSEEN:  # that may be over in a moment
            self._places[server] = (now, found)
        return found

    def _find(self, server: Server) -> Place:
        if server.pid is None or not self._is_it(server, server.pid):
            return Place.UNSEEN
        try:
            ours = (self._proc / "self/net/tcp").stat()
            its = (self._proc / str(server.pid) / "net/tcp").stat()
        except OSError:
            return Place.UNSEEN
        # A file of its own in every namespace; /proc/<pid>/ns/net would say it too, to its owner alone.
        return Place.OURS if (ours.st_dev, ours.st_ino) == (its.st_dev, its.st_ino) else Place.OWN

    def clients(self, server: Server) -> Looked | None:
        """What was seen last; None: nothing, or too long ago."""
        looked = self._looked.get(server)
        return looked if looked is not None and self._clock() - looked.at <= STALE else None

    def look(self) -> None:
        """Looks at everybody once. It blocks: about 0.2 ms for each, and 9 ms more where somebody came or went."""
        for server in self._wanted:
            looked = self._look(server) if self.place(server) is Place.OWN else None
            if looked is None:
                self._looked.pop(server, None)
            else:
                self._looked[server] = looked

    def _look(self, server: Server) -> Looked | None:
        if server.pid is None or not self._is_it(server, server.pid):
            return None
        net, now, before = self._proc / str(server.pid) / "net", self._clock(), self._looked.get(server)
        try:
            sockets = _counted(net)
            if before is not None and before.sockets == sockets and before.calm and now < before.read_at + AT_LEAST:
                return replace(before, at=now)
            if before is not None and before.clients and now < before.read_at + self._rest():
                return before  # somebody is connected, as before; how many exactly is worth no more than that
            return _read(server, net, sockets, now)
        except (OSError, ValueError):
            return None

    def _rest(self) -> float:
        """Seconds between two readings of one namespace where somebody is connected all the time."""
        return min(STALE / 2, sum(looked.cost for looked in list(self._looked.values())) / SHARE)

    def _is_it(self, server: Server, pid: int) -> bool:
        return is_main_process(pid, server.runtime_id, server.started_at, self._proc)


def _read(server: Server, net: Path, sockets: tuple[str, ...], now: float) -> Looked:
    """Raises OSError."""
    began = time.perf_counter()
    own = own_clients(server.address)
    port = wire_port(server.port)
    rows = [row for row in by_proc(ESTABLISHED, net) if row.local_port == port]
    if rows:
        own |= own_clients(server.address)  # again: a question of ours may have come meanwhile
    wires = {client_of(b"", wire) for wire in wire_addresses(server.address.host)}
    forwarded = not any(client_of(b"", row.local) in wires for row in rows)
    clients = frozenset(client_of(row.remote_port, row.remote) for row in rows)
    return Looked(
        at=now,
        clients=clients if forwarded else clients - own,
        own=len(own) if forwarded else 0,
        calm=not own,
        forwarded=forwarded,
        sockets=sockets,
        read_at=now,
        cost=time.perf_counter() - began,
    )


def _counted(net: Path) -> tuple[str, ...]:
    """The kernel's own counts of the TCP sockets in use, IPv4 and IPv6: cheap, and other ones when somebody comes."""
    found = []
    for name in ("sockstat", "sockstat6"):
        try:
            lines = (net / name).read_text().splitlines()
        except FileNotFoundError:
            if name == "sockstat":
                raise
            continue  # no IPv6
        found += [" ".join(line.split()[:3]) for line in lines if line.startswith("TCP")]
    return tuple(found)
