"""What systemd does for the daemon: listens to its words, and starts it again whenever it ends by itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.real.daemon import Daemon

LISTEN_S = 0.05
DEADLINE_S = 60.0


class Restarter:
    """`restarts` counts the starts after the first, `words` what the daemon has told."""

    def __init__(self, host: Daemon) -> None:
        self.restarts = 0
        self.words: list[str] = []
        self._host = host
        self._path = host.folder / "notify.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._socket.settimeout(LISTEN_S)
        self._ended = threading.Event()
        self._start()
        self._thread = threading.Thread(target=self._run, name="restarter")
        self._thread.start()

    def end(self) -> None:
        """Leaves the daemon as it is."""
        self._ended.set()
        self._thread.join(DEADLINE_S)
        self._socket.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            with suppress(TimeoutError):
                self.words.append(self._socket.recv(4096).decode())
            if not self._host.runs() and not self._ended.is_set():
                self.restarts += 1
                self._start()

    def _start(self) -> None:
        self._host.start(env={"NOTIFY_SOCKET": str(self._path)})


@contextmanager
def restarted(host: Daemon) -> Iterator[Restarter]:
    """Starts the daemon, and again after every end that the test does not ask for, until the block ends."""
    restarter = Restarter(host)
    try:
        yield restarter
    finally:
        restarter.end()
