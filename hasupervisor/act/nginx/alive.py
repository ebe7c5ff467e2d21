"""The daemon's sign of life: a path that nginx finds for as long as the daemon lives, and no longer.

nginx looks at it with each request (`if (-e ...)`, one stat). Where it is not found, nginx neither asks the daemon nor
writes to its log socket: each such try would fail, and nginx writes a line to its error log for each.

It is a symbolic link into /proc, to a thread of this process: it leads nowhere once the process has ended, however it
ended. A pid alone is soon another program's; a process and a thread of it with both numbers are not. Where somebody
holds the daemon's sockets while it is started again (systemd), it leads to what lives as long as those.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path


class Sign:
    """The link, and the thread that it leads to."""

    def __init__(self, path: Path, lasting: Path | None = None) -> None:
        """`lasting` is a path that is there for as long as the daemon's sockets are held by somebody else."""
        self._path = path
        self._lasting = lasting
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_shown = False

    def show(self) -> None:
        """Raises OSError."""
        if self._lasting is not None and self._lasting.exists():
            self._lead_to(self._lasting)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._over.wait, name="sign of life", daemon=True)
            self._thread.start()
        self._lead_to(Path("/proc", str(os.getpid()), "task", str(self._thread.native_id)))

    def always(self) -> None:
        """For an nginx that cannot look into /proc: it is found also while the daemon is away. Raises OSError."""
        self._lead_to(Path())

    def hide(self) -> None:
        """The daemon ends; nobody is to ask it from now on, unless its sockets are held. Raises OSError."""
        if self._is_shown and (self._lasting is None or not self._lasting.exists()):
            self._path.unlink(missing_ok=True)
        self._is_shown = False
        self._over.set()
        self._thread = None

    def _lead_to(self, target: Path) -> None:
        fresh = self._path.with_name(f".{self._path.name}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.rename(self._path)
        self._is_shown = True
