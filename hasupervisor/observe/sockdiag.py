"""The kernel's TCP sockets in bulk: by netlink (sock_diag), or from /proc/net/tcp where that is refused.

Shapes and numbers are those of linux/inet_diag.h, linux/netlink.h and linux/tcp.h. A dump walks the kernel's whole
hash table, about 0.5 ms on a host with 262,144 buckets, so the port filter runs in the kernel and only what is wanted
is copied and parsed.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ESTABLISHED, LISTEN = 1, 10  # TCP states, as numbers of the kernel

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
INET_DIAG_REQ_BYTECODE = 1
INET_DIAG_INFO = 2
JUMP, SOURCE_GE, SOURCE_LE, TARGET_GE, TARGET_LE = 1, 2, 3, 4, 5  # inet_diag bytecode: GE, LE compare a port

MESSAGE = 88  # bytes of nlmsghdr (16) and inet_diag_msg (72); attributes follow
LAST_DATA_SENT, LAST_DATA_RECV, BYTES_ACKED, BYTES_RECEIVED = 44, 52, 120, 128  # offsets in struct tcp_info
RECEIVE = 64 * 1024  # the kernel fills at most 32 kB at a time
PROC_NET = Path("/proc/net")
PATIENCE = 0.5  # seconds; the kernel answers at once or not at all


MAPPED = bytes(10) + b"\xff\xff"  # what an IPv6 address begins with that stands for an IPv4 one
UNTOLD = (0, 0, 0, 0)  # of sent_ms, heard_ms, sent, received


class SocketRow(NamedTuple):
    """One TCP socket. Ports are 2 bytes and addresses 16 as they are on the wire; IPv4 fills the first 4 of 16."""

    local_port: bytes
    remote_port: bytes
    local: bytes
    remote: bytes
    inode: int
    sent_ms: int = 0  # since payload was last sent; means something only when `sent` is not 0
    heard_ms: int = 0  # since payload was last received; means something only when `received` is not 0
    sent: int = 0  # bytes of payload that the other end has acknowledged; 0 as well when not told
    received: int = 0  # bytes of payload ever received; 0 as well when not told


def tcp_sockets(state: int, local: range | None = None) -> list[SocketRow]:
    """All TCP sockets (IPv4 and IPv6) in `state` whose own port is in the range given (of step 1).

    Sockets of this network namespace only. Raises OSError when neither netlink nor /proc can be asked.
    """
    if local == range(0):  # all empty ranges are equal
        return []
    try:
        return _by_netlink(state, _local_filter(local) if local is not None else b"")
    except OSError:
        # Refused (a seccomp filter, RestrictAddressFamilies), not built in, or out of buffers: the slower way.
        return [row for row in by_proc(state) if _within(row.local_port, local)]


def tcp_conversations(ports: range) -> list[SocketRow]:
    """The established TCP sockets of this network namespace that have a port of `ports` (of step 1) at either end.

    Raises OSError when neither netlink nor /proc can be asked.
    """
    if not ports:
        return []
    try:
        return _by_netlink(ESTABLISHED, _either_filter(ports))
    except OSError:
        rows = by_proc(ESTABLISHED)
        return [row for row in rows if _within(row.local_port, ports) or _within(row.remote_port, ports)]


def wire_addresses(host: str) -> tuple[bytes, ...]:
    """How a numeric address stands in a SocketRow: IPv4 plain and mapped into IPv6. Empty for a host name."""
    try:
        plain = socket.inet_pton(socket.AF_INET, host)
    except OSError:
        try:
            return (socket.inet_pton(socket.AF_INET6, host),)
        except OSError:
            return ()
    return (plain + bytes(12), MAPPED + plain)


def wire_port(port: int) -> bytes:
    """How a port stands in a SocketRow."""
    return port.to_bytes(2, "big")


def client_of(port: bytes, host: bytes) -> bytes:
    """One end of a connection, written alike whichever end tells of it: IPv4 without the clothes of IPv6."""
    return port + (host[12:] + bytes(12) if host.startswith(MAPPED) else host)


# --- netlink ----------------------------------------------------------------------------------------------------------


def _by_netlink(state: int, bytecode: bytes) -> list[SocketRow]:
    rows: list[SocketRow] = []
    # A socket for each look costs 10 us and leaves nothing behind that a broken dump could confuse.
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as link:
        patience = struct.pack("@ll", int(PATIENCE), int(PATIENCE % 1 * 1e6))
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        for family in (socket.AF_INET, socket.AF_INET6):
            link.send(_request(family, state, bytecode))
            while _read(link.recv(RECEIVE), rows):
                pass
    return rows


def _request(family: int, state: int, bytecode: bytes) -> bytes:
    wants_info = 1 << (INET_DIAG_INFO - 1) if state == ESTABLISHED else 0
    body = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, wants_info, 1 << state)
    body += bytes(36) + struct.pack("=IQ", 0, 0xFFFFFFFFFFFFFFFF)  # ports, addresses, interface: any; no cookie
    if bytecode:
        body += struct.pack("=HH", 4 + len(bytecode), INET_DIAG_REQ_BYTECODE) + bytecode
    return struct.pack("=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, REQUEST_DUMP, 0, 0) + body


def _local_filter(ports: range) -> bytes:
    """A program for the kernel: a comparison that fails jumps past its end, which means "not this one"."""
    return _compare(SOURCE_GE, ports[0], 20) + _compare(SOURCE_LE, ports[-1], 12)


def _either_filter(ports: range) -> bytes:
    """The same for either end: where the own port does not fit, the other one is compared; where it does, to the end.

    Five steps at the offsets 0, 8, 16, 20 and 28; the program ends at 36, and 40 means "not this one".
    """
    own = _compare(SOURCE_GE, ports[0], 20) + _compare(SOURCE_LE, ports[-1], 12)
    accept = struct.pack("=BBH", JUMP, 4, 20)
    return own + accept + _compare(TARGET_GE, ports[0], 20) + _compare(TARGET_LE, ports[-1], 12)


def _compare(code: int, port: int, otherwise: int) -> bytes:
    """One comparison of 8 bytes: the next step where it holds, else a jump of so many bytes."""
    return struct.pack("=BBH", code, 8, otherwise) + struct.pack("=BBH", 0, 0, port)


def _read(packet: bytes, rows: list[SocketRow]) -> bool:
    """Appends the sockets of one packet; False: the dump is over. Raises OSError for a refusal."""
    at = 0
    while at + 16 <= len(packet):
        length, kind = struct.unpack_from("=IH", packet, at)
        if kind == NLMSG_DONE:
            return False
        if kind == NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", packet, at + 16)
            raise OSError(-code, os.strerror(-code))
        if kind != SOCK_DIAG_BY_FAMILY or length < MESSAGE:
            raise OSError(f"netlink sent something else: type {kind}, {length} bytes")
        at += _read_alike(packet, at, length, rows)
    return True


def _read_alike(packet: bytes, at: int, length: int, rows: list[SocketRow]) -> int:
    """Appends a run of messages of one shape; returns the bytes taken.

    Sockets of one dump nearly always have the same attributes, so that a whole packet is unpacked by one C loop: 0.4 us
    a socket against 2 us.
    """
    info = _find_info(packet, at, length)
    stride = (length + 3) & ~3
    count = (len(packet) - at) // stride
    # length, type; local port, remote port, local, remote; inode; then INET_DIAG_INFO's head and four of its fields
    form = "=IH10x 4x 2s2s16s16s 28x I"
    if info:
        form += f"{info - MESSAGE}x I {LAST_DATA_SENT}x I {LAST_DATA_RECV - LAST_DATA_SENT - 4}x I"
        form += f"{BYTES_ACKED - LAST_DATA_RECV - 4}x QQ"
    shape = struct.Struct(f"{form} {stride - struct.calcsize(form)}x")
    head = struct.unpack_from("=I", packet, at + info)[0] if info else 0
    taken = 0
    for row in shape.iter_unpack(memoryview(packet)[at : at + count * stride]):
        if row[0] != length or row[1] != SOCK_DIAG_BY_FAMILY or (info and row[7] != head):
            break
        rows.append(SocketRow._make(row[2:7] + (row[8:12] if info else UNTOLD)))
        taken += stride
    return taken


def _find_info(packet: bytes, at: int, length: int) -> int:
    """Where, counted from the message's begin, its INET_DIAG_INFO attribute is; 0: it has none that is long enough."""
    offset = MESSAGE
    while offset + 4 <= length:
        size, kind = struct.unpack_from("=HH", packet, at + offset)
        if kind == INET_DIAG_INFO:
            return offset if size >= 4 + BYTES_RECEIVED + 8 else 0
        offset += max(4, (size + 3) & ~3)
    return 0


# --- /proc ------------------------------------------------------------------------------------------------------------


def by_proc(state: int, net: Path | None = None) -> Iterator[SocketRow]:
    """The TCP sockets in `state`, of another network namespace too: `net` is then /proc/<pid>/net of a process there.

    Needs no permission but to see that process. About 4 ms for each of the two files, whatever is in them: the kernel
    walks its whole hash table. Raises OSError when they cannot be read.
    """
    net = PROC_NET if net is None else net
    mark = f"{state:02X}"
    found = False
    for name in ("tcp", "tcp6"):
        try:
            lines = (net / name).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue  # no IPv6 in this kernel, or no /proc at all
        found = True
        for line in lines:
            fields = line.split(maxsplit=10)
            if fields[3] == mark:
                local, local_port = fields[1].split(":")
                remote, remote_port = fields[2].split(":")
                yield SocketRow(
                    bytes.fromhex(local_port),
                    bytes.fromhex(remote_port),
                    _address(local),
                    _address(remote),
                    int(fields[9]),
                )
    if not found:
        raise FileNotFoundError(f"neither netlink's sock_diag nor {net}/tcp can be read")


def _address(text: str) -> bytes:
    """An address of /proc/net/tcp: words of 4 bytes, each in the machine's own order."""
    raw = bytes.fromhex(text)
    if sys.byteorder == "little":
        raw = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    return raw + bytes(16 - len(raw))


def _within(port: bytes, ports: Sequence[int] | None) -> bool:
    return ports is None or int.from_bytes(port, "big") in ports
