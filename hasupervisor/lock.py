"""Makes sure that one daemon alone has a state directory and a control socket, and says who has them otherwise."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import re
import socket
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

DIAL_DEADLINE = 1.0
LONGEST_PATH = 107  # bytes; the kernel's sun_path, less the NUL


class Held(Exception):
    """Another daemon has it; the text says which, and the next command."""


class CannotTake(Exception):
    """It cannot be locked or made; the text says why, and the next command."""


class Lock:
    """A file that is locked for as long as this process lives or until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        # The file stays: removing it would let a third process lock a name that a second one already waits for.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


@dataclass(frozen=True)
class ControlSocket:
    """The listening socket and its lock."""

    socket: socket.socket
    path: Path
    inode: int
    lock: Lock

    def release(self, *, stays: bool = False) -> None:
        """Closes it and removes its name, unless the name is somebody else's by now, or somebody keeps it (`stays`)."""
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            if not stays and self.path.lstat().st_ino == self.inode:
                self.path.unlink()
        self.lock.release()


def lock_folder(folder: Path, program: str, key: str = "state.dir", name: str = "lock") -> Lock:
    """Locks the folder of a key, by a file in it, and makes it if it is missing. `program` is shown to whoever comes
    second. Raises Held and CannotTake.
    """
    _make(folder, key)
    what = "the state directory" if key == "state.dir" else key
    return _lock(folder / name, program, f"{what} {folder}")


def take_socket(
    path: Path, group: str, program: str, kept: Callable[[Path], socket.socket | None] = lambda path: None
) -> ControlSocket:
    """Binds the control socket, mode 0660, for `group` where that exists. One that nobody answers on is replaced.

    `kept` gives the socket that is found at that path, listening, where the daemon before has left it with somebody.

    It has its final owner and mode before it gets its name, so that nobody is let in for an instant who should not be.
    Raises Held and CannotTake.
    """
    if len(os.fsencode(_unborn(path))) > LONGEST_PATH:
        raise CannotTake(f"control.socket: {path} is longer than a socket's name may be; choose a shorter one")
    _make(path.parent, "control.socket")
    lock = _lock(path.with_name(f"{path.name}.lock"), program, f"the control socket {path}")
    try:
        if (left := kept(path)) is not None:
            return _adopt(left, path, group, lock)
        _refuse_if_answered(path)
        listener, inode = _bind(path, group)
    except BaseException:
        lock.release()
        raise
    return ControlSocket(listener, path, inode, lock)


def _adopt(left: socket.socket, path: Path, group: str, lock: Lock) -> ControlSocket:
    try:
        _give_to(path, group)  # another one may be configured by now
        return ControlSocket(left, path, path.lstat().st_ino, lock)
    except OSError as error:
        left.close()
        raise CannotTake(f"control.socket: {path}: {error.strerror}; ls -ld {path.parent} {path}") from error


def _make(folder: Path, key: str) -> None:
    try:
        if not folder.exists():
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            if key == "nginx.dir":
                folder.chmod(0o755)  # whatever the umask: nginx's workers have to reach what is in it
    except OSError as error:
        raise CannotTake(f"{key}: cannot make {folder}: {error.strerror}; ls -ld {folder.parent}") from error


def _lock(path: Path, program: str, what: str) -> Lock:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise CannotTake(f"cannot lock {what}: {path}: {error.strerror}; ls -ld {path.parent} {path}") from error
    _leave_to_the_owner(descriptor, path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EWOULDBLOCK:
            raise Held(
                f"{what} is held by {_holder(path)}; stop that daemon first: systemctl stop chatglm-ha"
            ) from None
        raise CannotTake(f"cannot lock {what}: {path}: {error.strerror}; df -T {path.parent}") from error
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _card(program).encode(), 0)
    except OSError as error:  # a full disk: the lock holds all the same, only its card is missing
        log.warning("the lock does not say who holds it", path=str(path), why=error.strerror)
    return Lock(descriptor)


def _leave_to_the_owner(descriptor: int, path: Path) -> None:
    """What root makes in a folder of the service's user (`--adopt`) the service has to be able to lock afterwards."""
    if os.geteuid() != 0:
        return
    try:
        folder = path.parent.stat()
        if os.fstat(descriptor).st_uid != folder.st_uid:
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
    except OSError as error:
        log.warning("the lock stays root's", path=str(path), why=error.strerror)


def _card(program: str) -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return f"{program}, pid {os.getpid()} (user {_user(os.geteuid())}), since {since}\n"


def _holder(path: Path) -> str:
    """Who has locked the file, in its own words: it writes them just after it has locked it, over those of the last."""
    deadline = time.monotonic() + 1.0
    while True:
        words = path.read_text(errors="replace").strip()
        pid = re.search(r"pid (\d+)", words)
        if pid is not None and Path("/proc", pid[1]).exists():
            return words
        if time.monotonic() > deadline:
            return f"a process that does not say who it is (fuser {path} shows it)"
        time.sleep(0.01)


def _refuse_if_answered(path: Path) -> None:
    """Dials before it is replaced: whoever answers keeps it."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotTake(f"control.socket: {path}: {error.strerror}; ls -ld {path.parent}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise CannotTake(f"control.socket: {path} is there and is no socket, so it is left alone; ls -l {path}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(DIAL_DEADLINE)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except (TimeoutError, BlockingIOError):
            raise Held(f"{path} is held by a process that does not answer; fuser {path} shows it") from None
        except OSError as error:
            raise CannotTake(f"control.socket: cannot dial {path}: {error.strerror}; ls -l {path}") from error
        raise Held(f"{path} is answered by {_peer(probe)}; stop that daemon first: systemctl stop chatglm-ha")


def _unborn(path: Path) -> Path:
    """The name that a socket has until it is ready for its own."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def _bind(path: Path, group: str) -> tuple[socket.socket, int]:
    unborn = _unborn(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        unborn.unlink(missing_ok=True)
        listener.bind(os.fspath(unborn))
        os.umask(before)
        _give_to(unborn, group)
        listener.listen(128)
        inode = unborn.lstat().st_ino
        unborn.rename(path)
    except OSError as error:
        listener.close()
        with contextlib.suppress(OSError):
            unborn.unlink(missing_ok=True)
        raise CannotTake(f"control.socket: cannot make {path}: {error.strerror}; ls -ld {path.parent}") from error
    finally:
        os.umask(before)
    return listener, inode


def _give_to(path: Path, group: str) -> None:
    try:
        # Asked first: who is not root may have it already, and not be allowed to give it.
        if group and (number := grp.getgrnam(group).gr_gid) != path.lstat().st_gid:
            os.chown(path, -1, number)
    except KeyError:
        log.info(
            "control.group does not exist: only the daemon's own user and group are let in; "
            f"groupadd --system {group}, then start the daemon again",
            group=group,
        )
    except OSError as error:
        log.warning("the control socket cannot be given to its group", group=group, why=error.strerror)
    path.chmod(0o660)


def _peer(connection: socket.socket) -> str:
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        name = f", {Path('/proc', str(pid), 'comm').read_text().strip()}"
    except OSError:
        name = ""
    return f"pid {pid}{name} (user {_user(uid)})"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
