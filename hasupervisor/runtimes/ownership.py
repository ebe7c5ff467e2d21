"""Whose containers are whose: a state directory has an identity, which every container of its daemon carries.

The identity is a file in state.dir, and a name that the living daemon holds in the kernel, so that others can see
whether it lives. Everybody on the host can read such names, and take one while the daemon is away: a holder counts only
if it is root, the service's user, ours, or the owner of the state directory.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import secrets
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

FILE = "identity.json"
SERVICE_USER = "chatglm-ha"  # whom the unit runs as


class Alive(Exception):
    """Another daemon with this identity lives; the text says which, and the next command."""


class Ownership:
    """The identity of one state directory, and those whose containers it has taken over.

    `place` is for people and for a state directory that was lost: the host and the path that the identity belongs to.
    """

    def __init__(self, folder: Path, host: str) -> None:
        """Reads the identity, or makes one. The folder is locked by the caller: nobody else writes it."""
        self._file = folder / FILE
        self.place = f"{host}:{folder.absolute()}"
        self._name: socket.socket | None = None
        found = _read(self._file)
        if found is not None and found.place != self.place and _is_copy(found, host, folder):
            log.info("this state directory is a copy: it gets an identity of its own", of=found.place)
            found = None
        self.id = found.id if found is not None else secrets.token_hex(16)
        self._adopted = found.adopted if found is not None else frozenset()
        self._write()

    @property
    def ids(self) -> frozenset[str]:
        """What a container of ours may carry."""
        return self._adopted | {self.id}

    def adopt(self, identity: str) -> None:
        """From now on the containers of that identity are ours, also after a restart."""
        self._adopted |= {identity}
        self._write()

    def hold(self) -> None:
        """Holds the name of this identity as long as this process lives. Raises Alive."""
        name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            name.bind(_kernel_name(self.id))
            name.listen(16)
        except OSError as error:
            name.close()
            if error.errno != errno.EADDRINUSE:
                raise
            who = alive(self.id, self.place)
            if who is not None:
                raise Alive(
                    f"a daemon with the identity of {self.place} runs already ({who}): "
                    f"is this state directory a copy of its own? rm {self._file} makes it another one"
                ) from None
            log.warning("a stranger holds the name that shows others that this daemon lives; ss -xlp | grep chatglm-ha")
            return
        self._name = name

    def release(self) -> None:
        if self._name is not None:
            self._name.close()
            self._name = None

    def _write(self) -> None:
        """A disk that takes nothing costs no service: at the next start the place tells whose containers they are.

        For the owner of the directory alone, whoever writes it (root, with --adopt): who knows it could hold its name.
        """
        staged = self._file.with_suffix(".new")
        try:
            staged.unlink(missing_ok=True)
            descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                if os.geteuid() == 0:
                    whose = self._file.parent.stat()
                    os.fchown(descriptor, whose.st_uid, whose.st_gid)
                json.dump({"id": self.id, "place": self.place, "adopted": sorted(self._adopted)}, file)
                file.flush()
                os.fsync(descriptor)
            staged.replace(self._file)
        except OSError as error:
            log.warning(f"the identity cannot be kept: {self._file}: {error.strerror}; df -h {self._file.parent}")


def alive(identity: str, place: str) -> str | None:
    """Which daemon with this identity lives on this host, "pid 4711"; None: none, as far as can be seen.

    `place` is where its state directory is said to be (Ownership.place).
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(_kernel_name(identity))
        except BlockingIOError:
            return "a daemon that lives"
        except OSError:  # nobody is there; or what stands in a label is no identity of ours
            return None
        pid, uid, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return f"pid {pid}" if uid in _trusted(place) else None


def _trusted(place: str) -> frozenset[int]:
    """The users whose daemon may have that state directory."""
    uids = {0, os.geteuid()}
    with contextlib.suppress(KeyError):
        uids.add(pwd.getpwnam(SERVICE_USER).pw_uid)
    with contextlib.suppress(OSError):
        uids.add(Path(place.partition(":")[2]).stat().st_uid)
    return frozenset(uids)


def _kernel_name(identity: str) -> str:
    return f"\0chatglm-ha-{identity}"


@dataclass(frozen=True, slots=True)
class _Written:
    id: str
    place: str
    adopted: frozenset[str]


def _read(file: Path) -> _Written | None:
    """What the file says; None where there is none, or none that can be understood: then it is lost."""
    try:
        found = json.loads(file.read_text())
        return _Written(str(found["id"]), str(found["place"]), frozenset(map(str, found["adopted"])))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning(f"the identity cannot be read, another one is made: {file}: {error}")
        return None


def _is_copy(found: _Written, host: str, folder: Path) -> bool:
    """Whether the directory that the identity was made in is still there with it: then this one is not the same."""
    there, _, path = found.place.partition(":")
    try:
        if there != host or not (Path(path) / FILE).exists():
            return False
        if (Path(path) / FILE).samefile(folder / FILE):  # another way to the same directory
            return False
    except OSError:  # a place that may not be looked at: nobody can know
        return False
    before = _read(Path(path) / FILE)
    return before is not None and before.id == found.id
