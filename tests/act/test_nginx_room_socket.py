"""The socket on which nginx asks the daemon, and the daemon's sign of life: whose they are, and how long they last."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasupervisor.act.nginx.alive import Sign
from hasupervisor.act.nginx.roomsocket import Unsafe, open_room_socket, refuse_if_shared
from hasupervisor.sdnotify import Keeping, Notifier


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's: a socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="chatglm-ha-") as folder:
        (Path(folder) / "nginx").mkdir(mode=0o755)
        yield Path(folder) / "nginx"


def dial(path: Path) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(path))


def test_it_is_for_owner_and_group_whatever_the_umask_and_stays_as_a_name_that_refuses(folder: Path) -> None:
    room = folder / "room.sock"
    before = os.umask(0)
    try:
        listener = open_room_socket(room, "")
    finally:
        os.umask(before)
    assert stat.S_IMODE(room.stat().st_mode) == 0o660
    assert dial(room) == 0
    listener.close()
    assert dial(room) != 0
    open_room_socket(room, "").close()  # the next daemon's takes its place
    assert [path.name for path in folder.iterdir()] == ["room.sock"]


def test_one_that_was_left_with_systemd_is_used_on_with_whoever_waits_in_it(folder: Path) -> None:
    room = folder / "room.sock"
    first = open_room_socket(room, "")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
        waiting.connect(str(room))
        kept = Keeping(Notifier(), {f"room-{room.stat().st_ino}": first.dup()})
        first.close()
        second = open_room_socket(room, "", kept)
        connection, _ = second.accept()
        connection.close()
        second.close()


@pytest.mark.parametrize("place", ["nginx.dir", "a folder above it"])
def test_a_folder_that_everybody_may_write_to_is_refused_with_what_to_do(folder: Path, place: str) -> None:
    shared = folder if place == "nginx.dir" else folder.parent
    mode = stat.S_IMODE(shared.stat().st_mode)
    shared.chmod(0o777)
    with pytest.raises(Unsafe, match=f"everybody may write to {shared}, .*; chmod o-w {shared}"):
        open_room_socket(folder / "room.sock", "")
    shared.chmod(0o1777 if place != "nginx.dir" else mode)  # as /tmp has it: nobody can replace what is another's
    open_room_socket(folder / "room.sock", "").close()


def test_a_folder_that_the_group_of_nginx_s_workers_may_write_to_is_refused(folder: Path) -> None:
    import grp

    group = grp.getgrgid(folder.stat().st_gid).gr_name
    folder.chmod(0o775)
    with pytest.raises(Unsafe, match=f"the group {group} may write to {folder}, .*; chmod g-w {folder}"):
        refuse_if_shared(folder, group)
    refuse_if_shared(folder)  # a user's private group


def test_a_file_in_its_place_is_left_alone(folder: Path) -> None:
    (folder / "room.sock").write_text("mine")
    with pytest.raises(OSError, match="is in the way"):
        open_room_socket(folder / "room.sock", "")
    assert (folder / "room.sock").read_text() == "mine"


def test_a_path_that_no_socket_may_have_is_told(folder: Path) -> None:
    with pytest.raises(OSError, match="longer than the 107 bytes"):
        open_room_socket(folder / ("x" * 107), "")


# --- the sign of life -------------------------------------------------------------------------------------------------

SHOWING = """
import sys
from pathlib import Path
from hasupervisor.act.nginx.alive import Sign
Sign(Path(sys.argv[1])).show()
print(Path(sys.argv[1]).exists(), flush=True)
sys.stdin.read()
"""


def test_it_is_there_while_the_process_lives_and_not_when_it_was_killed(folder: Path) -> None:
    sign = folder / "alive"
    command = [sys.executable, "-c", SHOWING, str(sign)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert sign.exists()
        process.kill()
        process.wait(10)
    assert sign.is_symlink()
    assert not sign.exists()


def test_a_process_with_the_same_pid_is_not_taken_for_the_daemon(folder: Path) -> None:
    sign = Sign(folder / "alive")
    sign.show()
    process, thread = (folder / "alive").readlink().parts[2], (folder / "alive").readlink().parts[4]
    assert process == str(os.getpid())
    assert thread != process, "a main thread has the number of its process"
    sign.hide()
    assert not (folder / "alive").is_symlink()


def test_where_sockets_are_held_it_lasts_as_long_as_those(folder: Path) -> None:
    held = folder / "run"
    held.mkdir()
    sign = Sign(folder / "alive", held)
    sign.show()
    sign.hide()
    assert (folder / "alive").exists(), "who asks now waits in the socket"
    held.rmdir()
    assert not (folder / "alive").exists()


def test_for_an_nginx_that_cannot_see_it_is_always_there(folder: Path) -> None:
    sign = Sign(folder / "alive")
    sign.show()
    sign.always()
    assert (folder / "alive").readlink() == Path()
    sign.hide()
    assert not (folder / "alive").is_symlink()
