"""Sockets that are left with systemd: handed over as it takes them, taken back as it hands them to the next daemon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasupervisor.lock import take_socket
from hasupervisor.observe.logsocket import open_log_socket
from hasupervisor.sdnotify import Keeping, Notifier

TAKE = """
import os, sys
from pathlib import Path
from hasupervisor.sdnotify import Keeping, Notifier
os.dup2(int(sys.argv[1]), 3)
environment = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid() + int(sys.argv[4])), "LISTEN_FDNAMES": sys.argv[2]}
keeping = Keeping.from_environment(environment, Notifier())
assert environment == {}, environment
taken = keeping.take("control", Path(sys.argv[3]))
print(taken is not None, taken is not None and not taken.get_inheritable() and taken.fileno() == 3)
"""


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"{tmp_path}/notify")
        listener.settimeout(5)
        yield listener


@pytest.fixture
def notifier(tmp_path: Path, systemd: socket.socket) -> Iterator[Notifier]:
    notifier = Notifier(f"{tmp_path}/notify")
    yield notifier
    notifier.close()


def dialled(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


def handed(systemd: socket.socket) -> tuple[str, socket.socket]:
    """The name and the socket that systemd was given."""
    message, descriptors, _, _ = socket.recv_fds(systemd, 4096, 4)
    (descriptor,) = descriptors
    first, second = message.decode().split("\n")
    assert first == "FDSTORE=1"
    return second.removeprefix("FDNAME="), socket.socket(fileno=descriptor)


def test_a_control_socket_lives_on_with_systemd_and_the_next_daemon_takes_it(
    tmp_path: Path, systemd: socket.socket, notifier: Notifier
) -> None:
    path = tmp_path / "control.sock"
    first = take_socket(path, "", "chatglm-had 1.0.0")
    keeping = Keeping(notifier)
    assert keeping.lasts
    keeping.give("control", path, first.socket)
    name, kept = handed(systemd)
    assert name == f"control-{path.stat().st_ino}"
    first.release(stays=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(path))  # while there is no daemon
        again = Keeping(notifier, {name: kept})
        second = take_socket(path, "", "chatglm-had 1.0.1", lambda path: again.take("control", path))
        client.settimeout(5)
        answering, _ = second.socket.accept()
        with answering:
            answering.sendall(b"here")
        assert client.recv(16) == b"here"
    again.give("control", path, second.socket)
    assert handed(systemd)[0] == name, "systemd itself sees that it has it already"
    second.release()
    assert not path.exists()


def test_a_socket_whose_name_is_anothers_by_now_is_let_go(
    tmp_path: Path, systemd: socket.socket, notifier: Notifier
) -> None:
    path = tmp_path / "control.sock"
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    keeping = Keeping(notifier, {"control-1": stale})
    fresh = take_socket(path, "", "chatglm-had 1.0.0", lambda path: keeping.take("control", path))
    assert fresh.socket is not stale
    keeping.give("control", path, fresh.socket)
    assert systemd.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=control-1"
    assert stale.fileno() == -1
    assert dialled(path)
    fresh.release()


def test_lines_that_come_while_there_is_no_daemon_are_read_by_the_next(
    tmp_path: Path, systemd: socket.socket, notifier: Notifier
) -> None:
    path = tmp_path / "access.sock"
    first = open_log_socket(path)
    Keeping(notifier).give("access-log", path, first)
    name, kept = handed(systemd)
    first.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as worker:
        worker.sendto(b"a line", str(path))
    again = Keeping(notifier, {name: kept})
    with open_log_socket(path, kept=lambda path: again.take("access-log", path)) as second:
        assert second.recv(64) == b"a line"


def test_without_systemd_nothing_is_kept(tmp_path: Path) -> None:
    keeping = Keeping(Notifier())
    assert not keeping.lasts
    control = take_socket(tmp_path / "control.sock", "", "chatglm-had 1.0.0")
    keeping.give("control", control.path, control.socket)
    control.release(stays=keeping.lasts)
    assert not control.path.exists()


@pytest.mark.parametrize(
    ("is_ours", "pid_off_by", "expected"), [(True, 0, "True True"), (False, 0, "False False"), (True, 1, "False False")]
)
def test_what_systemd_hands_over_is_taken_by_its_name_and_kept_from_children(
    tmp_path: Path, is_ours: bool, pid_off_by: int, expected: str
) -> None:
    path = tmp_path / "control.sock"
    control = take_socket(path, "", "chatglm-had 1.0.0")
    name = f"control-{path.stat().st_ino if is_ours else 1}"
    arguments = [str(control.socket.fileno()), name, str(path), str(pid_off_by)]
    ran = subprocess.run(
        [sys.executable, "-c", TAKE, *arguments],
        pass_fds=[control.socket.fileno()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    control.release()
    assert (ran.stdout.strip(), ran.returncode) == (expected, 0), ran.stderr
