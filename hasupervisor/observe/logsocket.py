"""The datagram socket that nginx's workers write their access log to."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

PATH_LIMIT = 107  # bytes: sun_path
QUEUE = 512  # lines that may wait; the kernel's own default is 10, systemd sets 512
QUEUE_FILE = Path("/proc/sys/net/unix/max_dgram_qlen")


def open_log_socket(
    path: Path, mode: int = 0o660, group: str = "", kept: Callable[[Path], socket.socket | None] = lambda path: None
) -> socket.socket:
    """Makes the socket, in place of a stale one, writable for nginx's workers by `group` (a name or number) and `mode`.

    A line that finds the socket missing, not writable for the worker's user, or its queue full is dropped by nginx,
    silently: a request never waits for us. (SO_RCVBUF does nothing for these sockets: waiting lines are charged to the
    sender.) Raises OSError with what to do when it cannot be made.

    `kept` gives the socket that is found at that path, where the daemon before has left it with somebody.
    """
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise OSError(f"{path}: longer than the {PATH_LIMIT} bytes that a socket may have; shorten state.dir")
    _refuse_to_replace_a_file(path)
    if (left := kept(path)) is not None:
        return _adopt(left, path, mode, group)
    beside = path.with_name(".new")
    beside.unlink(missing_ok=True)
    with _deep_queue():  # the length is taken over when a socket is made
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(os.fspath(beside))
        if group:
            _give(beside, group)
        beside.chmod(mode)
        beside.replace(path)
    except OSError:
        listener.close()
        raise
    return listener


def _adopt(left: socket.socket, path: Path, mode: int, group: str) -> socket.socket:
    try:
        left.setblocking(False)
        if group:
            _give(path, group)
        path.chmod(mode)
    except OSError:
        left.close()
        raise
    return left


def _refuse_to_replace_a_file(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise OSError(f"{path} is in the way: it is not a socket; move it away")


def _give(path: Path, group: str) -> None:
    try:
        number = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        # Asked first: who is not root may not give it, but has it already where the folder gives it its own group.
        if path.lstat().st_gid != number:
            os.chown(path, -1, number)
    except (LookupError, PermissionError) as error:
        raise OSError(
            f"{path} cannot be given to the group {group} ({error}): nginx's workers could not write to it; "
            f"chgrp {group} {path.parent} && chmod 2755 {path.parent}, then start the daemon again"
        ) from error


@contextlib.contextmanager
def _deep_queue() -> Iterator[None]:
    """Where we may, a queue of QUEUE lines for sockets made meanwhile; the setting of the host is left as it was."""
    try:
        before = QUEUE_FILE.read_text()
        if int(before) < QUEUE:
            QUEUE_FILE.write_text(str(QUEUE))
    except OSError:
        yield  # not root, or read-only: lines may be lost in a burst, see `queue_warning`
        return
    try:
        yield
    finally:
        if int(before) < QUEUE:
            QUEUE_FILE.write_text(before)


def queue_warning() -> str | None:
    """A sentence for people when bursts of lines will be lost, with what to do; None: the queue is deep enough."""
    try:
        length = int(QUEUE_FILE.read_text())
    except OSError:
        return None
    if length >= QUEUE or os.access(QUEUE_FILE, os.W_OK):
        return None
    return (
        f"net.unix.max_dgram_qlen is {length}: access log lines are lost in bursts; "
        f"sysctl -w net.unix.max_dgram_qlen={QUEUE}, then restart chatglm-ha"
    )
