"""The Unix socket on which nginx asks the daemon: nginx's workers reach it, and no stranger takes its place.

A port on loopback is anybody's while the daemon is away, and who answers there is told every request that nobody has
answered. A name in a folder that others may not write to stays the daemon's.
"""

from __future__ import annotations

import grp
import os
import socket
import stat
from pathlib import Path
from typing import Protocol

WHAT = "room"  # the name under which it is left with somebody
PATH_LIMIT = 107  # bytes: sun_path
BACKLOG = 4096


class Keeper(Protocol):
    """Somebody who holds sockets while the daemon is started again (sdnotify.Keeping)."""

    @property
    def lasts(self) -> bool: ...

    def take(self, what: str, path: Path) -> socket.socket | None: ...

    def give(self, what: str, path: Path, kept: socket.socket) -> None: ...


class Unsafe(OSError):
    """Somebody else could put a socket of their own in its place; the text says who, and the next command."""


def open_room_socket(path: Path, group: str, keeper: Keeper | None = None) -> socket.socket:
    """Listens at `path`, mode 0660, for the daemon's user and `group` (empty: whatever group the folder gives).

    The socket that the daemon before has left with `keeper` is used on, with whoever waits in it. Its name stays when
    the daemon ends: a question is then refused, and nobody else can bind there. Raises OSError.
    """
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise OSError(f"{path} is longer than the {PATH_LIMIT} bytes that a socket may have; shorten nginx.dir")
    refuse_if_shared(path.parent, group)
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        raise OSError(f"{path} is in the way: it is not a socket; mv {path} {path}.old")
    if keeper is not None and (left := keeper.take(WHAT, path)) is not None:
        left.setblocking(False)
        _give(path, group)
        keeper.give(WHAT, path, left)
        return left
    listener = _bind(path, group)
    if keeper is not None:
        keeper.give(WHAT, path, listener)
    return listener


def _bind(path: Path, group: str) -> socket.socket:
    """With its final owner and mode before it gets its name, so that nobody is let in for an instant."""
    unborn = path.with_name(".room")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        unborn.unlink(missing_ok=True)
        listener.bind(os.fspath(unborn))
        os.umask(before)
        _give(unborn, group)
        listener.listen(BACKLOG)
        unborn.rename(path)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _give(path: Path, group: str) -> None:
    try:
        # Asked first: who is not root may not give it, but has it already where the folder gives it its own group.
        if group and (number := grp.getgrnam(group).gr_gid) != path.lstat().st_gid:
            os.chown(path, -1, number)
    except (KeyError, PermissionError) as error:
        raise OSError(
            f"{path} cannot be given to the group {group} ({error}): nginx's workers could not ask there; "
            f"chgrp {group} {path.parent} && chmod 2755 {path.parent}, then start the daemon again"
        ) from error
    path.chmod(0o660)


def refuse_if_shared(folder: Path, group: str = "") -> None:
    """Raises Unsafe where somebody else may put another file in the place of one in `folder`, or of a folder above it.

    A folder above that only a group may write to is taken for the owner's own (a user's private group). That of nginx's
    workers is not: they answer to strangers.
    """
    workers = _number(group)
    for place in (folder, *folder.resolve().parents):
        found = place.stat()
        sticky = place != folder and bool(found.st_mode & stat.S_ISVTX)
        others = bool(found.st_mode & stat.S_IWOTH)
        shared = bool(found.st_mode & stat.S_IWGRP) and found.st_gid == workers
        if (others or shared) and not sticky:
            who = "everybody" if others else f"the group {group}"
            raise Unsafe(
                f"{who} may write to {place}, and could answer nginx in the daemon's place; "
                f"chmod {'o' if others else 'g'}-w {place}"
            )


def _number(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid if group else None
    except KeyError:
        return None
