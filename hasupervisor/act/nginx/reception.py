"""The daemon's side of what nginx asks: the sign of life that it looks for, the socket, the waiting room behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog

from hasupervisor.act.nginx.alive import Sign
from hasupervisor.act.nginx.room import Room
from hasupervisor.act.nginx.roomsocket import Keeper, open_room_socket
from hasupervisor.act.nginx.settings import NginxSettings
from hasupervisor.act.nginx.waiting import WaitingRoom

log = structlog.get_logger(__name__)


class Reception:
    """Opened once nginx.dir is there; tried again until it is open. nginx goes on serving without it."""

    def __init__(
        self,
        settings: NginxSettings,
        serving: Callable[[], int],
        on_wait: Callable[[], None],
        keeper: Keeper | None,
        lasting: Path | None,
    ) -> None:
        """`serving` counts who serves now. `keeper` and `lasting`: see open_room_socket and Sign."""
        self.waiting = WaitingRoom(
            hold=settings.hold,
            hold_max=settings.hold_max,
            tries=settings.tries,
            own=f"unix:{settings.room}",
            on_wait=on_wait,
        )
        self.trouble = ""  # why it is not open, for people
        self._path, self._group = settings.room, settings.worker_group
        self._room = Room(serving, self.waiting)
        self._keeper = keeper
        self._sign = Sign(settings.sign, lasting)
        self._is_shown = False
        self._is_always_seen = False
        self._is_told = False

    @property
    def open(self) -> bool:
        return self._room.open

    async def start(self) -> None:
        """Begins to listen and shows the sign of life, whatever of it is not done yet."""
        if self.open and self._is_shown:
            return
        try:
            if not self.open:
                await self._room.start(open_room_socket(self._path, self._group, self._keeper))
            self._sign.show()
            self._is_shown = True
        except OSError as error:
            self._fail(f"nginx cannot ask the daemon, so no request waits and /health asks the instances: {error}")
        else:
            self.trouble = ""

    def _fail(self, words: str) -> None:
        if words != self.trouble:
            log.warning(words)
        self.trouble = words

    def is_overlooked(self) -> None:
        """nginx runs our files and does not find the sign: it is put where it is always found."""
        if self._is_always_seen or not self.open:
            return
        if not self._is_told:
            self._is_told = True
            log.warning(
                "nginx does not see this process in /proc (hidepid=, ProtectProc=): while the daemon is away, nginx "
                "will write a line to its error log for each request; mount -o remount,hidepid=0 /proc"
            )
        try:
            self._sign.always()
        except OSError as error:
            self._fail(
                f"nginx's access log and held requests do not reach the daemon: {error}; df -h {self._path.parent}"
            )
        else:
            self._is_always_seen = True
            self.trouble = ""

    async def close(self) -> None:
        """Stops listening; whoever waits is told that there is nobody."""
        try:
            self._sign.hide()
        except OSError as error:  # it leads nowhere once this process has ended
            log.warning("the daemon's sign of life stays until it ends", reason=str(error))
        self.waiting.close()
        await self._room.close()
