"""Tells systemd how the daemon stands, and leaves sockets with it while the daemon is started again.

By its notification socket, as sd_notify(3) and sd_listen_fds(3) have it, without the C library.
"""

from __future__ import annotations

import array
import os
import socket
import stat
import time
from collections.abc import MutableMapping
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


class Notifier:
    """Sends states to systemd; without systemd it does nothing. Never blocks, and a state that is lost is said once."""

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        self.watchdog = watchdog  # seconds within which a WATCHDOG=1 must follow the last one; None: nobody watches
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        self._failing = False

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Notifier:
        """Takes the variables out of the environment: an instance that the daemon starts must not speak for it."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        if address and address[0] not in "/@":
            log.warning("NOTIFY_SOCKET is neither a path nor an abstract name; systemd is told nothing", found=address)
            address = ""
        watched = microseconds.isdecimal() and int(microseconds) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(microseconds) / 1e6 if address and watched else None)

    def ready(self, status: str = "") -> bool:
        """The daemon has started (or has finished reloading)."""
        return self._send("READY=1", *([f"STATUS={status}"] if status else []))

    def alive(self, status: str = "") -> bool:
        """Feeds the watchdog, and shows `status` in `systemctl status`."""
        return self._send("WATCHDOG=1", *([f"STATUS={status}"] if status else []))

    def status(self, status: str) -> bool:
        return self._send(f"STATUS={status}")

    def reloading(self) -> bool:
        """A reload begins; `ready` has to follow. Without the time systemd would wait for ever."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> bool:
        return self._send("STOPPING=1")

    @property
    def is_heard(self) -> bool:
        """Whether there is a service manager that listens."""
        return self._socket is not None

    def keep(self, name: str, descriptor: int) -> bool:
        """Leaves a copy of an open file with systemd, which hands it to the next daemon (FileDescriptorStoreMax=)."""
        return self._send("FDSTORE=1", f"FDNAME={name}", descriptors=(descriptor,))

    def drop(self, name: str) -> bool:
        """Takes back every file that was left under that name."""
        return self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *states: str, descriptors: tuple[int, ...] = ()) -> bool:
        """Whether there is nobody to tell, or systemd has been told."""
        if self._socket is None:
            return True
        message = "\n".join(state.replace("\n", " ") for state in states).encode("utf-8", "replace")
        with_it = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._socket.sendmsg([message], with_it, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
        except OSError as error:
            if not self._failing:
                log.warning("cannot tell systemd how the daemon stands", why=error.strerror, states=states)
            self._failing = True
            return False
        self._failing = False
        return True


class Keeping:
    """Sockets with a name on disk that outlive the daemon: who connects or writes meanwhile finds them.

    Each is kept under "<what>-<inode of its name on disk>": a socket does not know under which name it can be found by
    now, so that another's name would be taken for it.
    """

    def __init__(self, notifier: Notifier, found: dict[str, socket.socket] | None = None) -> None:
        self._notifier = notifier
        self._found = found or {}

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str], notifier: Notifier) -> Keeping:
        """Takes over what systemd hands us, and takes its variables out of the environment."""
        count, pid = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
        names = environment.pop("LISTEN_FDNAMES", "").split(":")
        if not count.isdecimal() or pid != str(os.getpid()):
            return cls(notifier)
        found = {}
        for descriptor, name in zip(range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)), names, strict=False):
            os.set_inheritable(descriptor, False)  # an instance must not hold it open
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                found[name] = socket.socket(fileno=descriptor)
        return cls(notifier, found)

    @property
    def lasts(self) -> bool:
        """Whether what is given is kept when this daemon ends: its name on disk has to stay then."""
        return self._notifier.is_heard

    def take(self, what: str, path: Path) -> socket.socket | None:
        """The socket that is found at `path`, if the daemon before has left it; the caller closes it."""
        return self._found.pop(_name(what, path), None)

    def give(self, what: str, path: Path, kept: socket.socket) -> None:
        """Leaves the socket at `path` with systemd; what was left of that kind and is none any more is let go."""
        name = _name(what, path)
        for stale in [found for found in self._found if found.rpartition("-")[0] == what and found != name]:
            self._found.pop(stale).close()
            self._notifier.drop(stale)
        self._notifier.keep(name, kept.fileno())


def _name(what: str, path: Path) -> str:
    try:
        return f"{what}-{path.lstat().st_ino}"
    except OSError:
        return f"{what}-"  # not there, so nobody's
