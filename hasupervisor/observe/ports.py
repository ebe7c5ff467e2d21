"""Which ports of a range are listened on already, so that an instance is not given one of them."""

from __future__ import annotations

from hasupervisor.observe.sockdiag import LISTEN, tcp_sockets, wire_addresses

EVERYWHERE = frozenset({bytes(16), bytes(10) + b"\xff\xff" + bytes(4)})  # 0.0.0.0, ::, ::ffff:0.0.0.0


def taken_ports(ports: range, bind: str = "127.0.0.1") -> frozenset[int]:
    """Ports of `ports` on which somebody, our own instances included, listens where `bind` would.

    A listener on all addresses is in the way of any `bind`, and any listener in the way of a `bind` to all; a `bind`
    that is no numeric address is taken for the latter. Empty as well where the kernel cannot be asked: this saves a
    start that would fail, no more; the start itself tells.
    """
    if not ports:
        return frozenset()
    wires = frozenset(wire_addresses(bind))
    anywhere = not wires or bool(wires & EVERYWHERE)
    try:
        listeners = tcp_sockets(LISTEN, local=ports)
    except OSError:
        return frozenset()
    return frozenset(
        int.from_bytes(row.local_port, "big")
        for row in listeners
        if anywhere or row.local in wires or row.local in EVERYWHERE
    )
