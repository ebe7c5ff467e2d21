"""The socket that nginx writes to: who may, what it replaces, how much waits in it."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from hasupervisor.observe.logsocket import QUEUE, QUEUE_FILE, open_log_socket, queue_warning


def send(path: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(os.fspath(path))
        sender.send(data)


def test_what_is_sent_arrives_whole(tmp_path: Path) -> None:
    with open_log_socket(tmp_path / "log.sock") as listener:
        send(tmp_path / "log.sock", b"x" * 20_000)
        assert listener.recv(65536) == b"x" * 20_000


def test_it_has_the_mode_and_group_asked_for(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    for wanted in (group, str(os.getgid())):
        with open_log_socket(tmp_path / "log.sock", mode=0o620, group=wanted):
            found = (tmp_path / "log.sock").stat()
            assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o620, os.getgid())
    assert [file.name for file in tmp_path.iterdir()] == ["log.sock"]


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    open_log_socket(path).close()
    assert path.is_socket()
    with open_log_socket(path) as listener:
        send(path, b"new")
        assert listener.recv(100) == b"new"


def test_a_file_in_the_way_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "log.sock").write_text("precious")
    with pytest.raises(OSError, match="is in the way: it is not a socket; move it away"):
        open_log_socket(tmp_path / "log.sock")
    assert (tmp_path / "log.sock").read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="longer than the 107 bytes that a socket may have"):
        open_log_socket(tmp_path / ("x" * 120))


def test_an_unknown_group_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be given to the group no-such-group"):
        open_log_socket(tmp_path / "log.sock", group="no-such-group")


def test_the_queue_is_deep_where_we_may_make_it_so_and_the_hosts_setting_stays(tmp_path: Path) -> None:
    before = QUEUE_FILE.read_text()
    with open_log_socket(tmp_path / "log.sock"), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        assert QUEUE_FILE.read_text() == before
        sender.setblocking(False)
        sender.connect(os.fspath(tmp_path / "log.sock"))
        taken = 0
        with contextlib.suppress(BlockingIOError):
            while taken <= 2 * QUEUE:
                taken += sender.send(b"x")
        # The sender's own buffer may be full before the queue is.
        enough = 100 if os.access(QUEUE_FILE, os.W_OK) or int(before) >= QUEUE else int(before)
        assert enough <= taken <= 2 * QUEUE
        assert (queue_warning() is None) == (enough == 100)
