"""Who is at the other end of a Unix socket, as the kernel knows it."""

from __future__ import annotations

import asyncio
import pwd
import socket
import struct
import threading
from dataclasses import dataclass

LOOK_UP_DEADLINE = 1.0
"""Seconds for a user's name: it may come from a directory server that does not answer."""

KEEP_NAMES = 256


@dataclass(frozen=True, slots=True)
class Peer:
    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer | None:
    """None for a connection that is no Unix socket's."""
    if connection.family != socket.AF_UNIX:
        return None
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid)


class UserNames:
    """Names of users, remembered; one that cannot be had in time is left out."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    async def describe(self, peer: Peer | None) -> str:
        """ "alice (uid 1000)", or "uid 1000"."""
        if peer is None:
            return "somebody"
        if peer.uid not in self._known:
            name = await _look_up(peer.uid)
            if name is None:
                return f"uid {peer.uid}"
            if len(self._known) >= KEEP_NAMES:
                self._known.clear()
            self._known[peer.uid] = name
        name = self._known[peer.uid]
        return f"{name} (uid {peer.uid})" if name else f"uid {peer.uid}"


async def _look_up(uid: int) -> str | None:
    """The name, "" where there is none, None where it cannot be had in time.

    In a thread of its own that nobody waits for at the end, because the C library has no deadline here.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()

    def settle(name: str) -> None:
        if not answer.done():
            answer.set_result(name)

    def ask() -> None:
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = ""
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, name)

    threading.Thread(target=ask, name=f"name of uid {uid}", daemon=True).start()
    try:
        async with asyncio.timeout(LOOK_UP_DEADLINE):
            return await answer
    except TimeoutError:
        return None
