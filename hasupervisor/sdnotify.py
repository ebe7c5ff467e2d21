"""Tells systemd how the daemon stands, by its notification socket (sd_notify(3), without the C library)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

import structlog

log = structlog.get_logger(__name__)


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

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *states: str) -> bool:
        """Whether there is nobody to tell, or systemd has been told."""
        if self._socket is None:
            return True
        message = "\n".join(state.replace("\n", " ") for state in states).encode("utf-8", "replace")
        try:
            self._socket.sendto(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
        except OSError as error:
            if not self._failing:
                log.warning("cannot tell systemd how the daemon stands", why=error.strerror, states=states)
            self._failing = True
            return False
        self._failing = False
        return True
