"""Requests in flight at each instance, counted from outside: the kernel's established connections to its address.

That is exact while nginx keeps no connections to the instances (facts of the gateway: no `keepalive` there), because
then a connection is a request. Counted is what this host's own network namespace connects: nginx on this host, and
docker-proxy for those who come through a published port.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hasupervisor.model import Address
from hasupervisor.observe.sockdiag import ESTABLISHED, SocketRow, tcp_sockets, wire_addresses, wire_port

OWN_FILES = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class Flight:
    """What is connected to one address, this process's own connections left out."""

    connections: int = 0
    heard_s: float | None = None  # seconds since bytes last came from it on any of them; None: nothing yet, or not told


class InFlight:
    """Counts connections; one look takes about a millisecond, whatever else the host has open."""

    def __init__(self) -> None:
        self.trouble: str | None = None  # why the last look failed, in words

    def count(self, addresses: Iterable[Address]) -> dict[Address, Flight] | None:
        """Established connections by address, for every numeric address given; None when the kernel cannot be asked.

        A host name is left out of the answer: what it stands for may differ between us and whoever connects.
        """
        wanted = {
            wire_port(address.port) + wire: address for address in addresses for wire in wire_addresses(address.host)
        }
        if not wanted:
            return {}
        ports = [address.port for address in wanted.values()]
        try:
            rows = tcp_sockets(ESTABLISHED, remote=range(min(ports), max(ports) + 1))
            own = _own_inodes() if rows else frozenset()
        except OSError as error:
            self.trouble = f"connections cannot be counted: {error.strerror or error}"
            return None
        self.trouble = None
        return _sum(rows, wanted, own)


def _sum(rows: list[SocketRow], wanted: dict[bytes, Address], own: frozenset[int]) -> dict[Address, Flight]:
    counts = dict.fromkeys(wanted.values(), 0)
    heard: dict[Address, int] = {}
    for _, port, _, host, inode, received, heard_ms in rows:
        address = wanted.get(port + host)
        if address is None or inode in own:
            continue
        counts[address] += 1
        if received:
            heard[address] = min(heard_ms, heard.get(address, heard_ms))
    return {
        address: Flight(count, heard[address] / 1000.0 if address in heard else None)
        for address, count in counts.items()
    }


def _own_inodes() -> frozenset[int]:
    """The inodes of this process's sockets: our own questions are not users' work."""
    inodes = set()
    with os.scandir(OWN_FILES) as files:
        for file in files:
            try:
                target = os.readlink(file.path)  # noqa: PTH115, a Path for each would cost more than the look itself
            except FileNotFoundError:
                continue  # closed by another thread meanwhile, or the listing's own descriptor
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
    return frozenset(inodes)
