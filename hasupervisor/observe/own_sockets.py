"""Which connections are this process's own: its questions to the instances are not users' work."""

from __future__ import annotations

import os
from pathlib import Path

from hasupervisor.model import Address
from hasupervisor.observe.sockdiag import client_of, tcp_conversations, wire_addresses, wire_port

OWN_FILES = Path("/proc/self/fd")


def own_inodes() -> frozenset[int]:
    """The inodes of this process's sockets. Raises OSError."""
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


def own_clients(address: Address) -> frozenset[bytes]:
    """This process's ends of its connections to that address, as `client_of` writes them. Raises OSError."""
    port, wires = wire_port(address.port), wire_addresses(address.host)
    rows = tcp_conversations(range(address.port, address.port + 1))
    ours = own_inodes() if rows else frozenset()
    return frozenset(
        client_of(row.local_port, row.local)
        for row in rows
        if row.remote_port == port and row.remote in wires and row.inode in ours
    )
